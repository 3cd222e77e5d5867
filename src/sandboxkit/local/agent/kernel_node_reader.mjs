// Reads the wire for `kernel_node.mjs`, in a thread of its own: passes frames on, and stops a cell that does not listen.

import inspector from 'node:inspector';
import net from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';

const PATIENCE = 100; // milliseconds that the main thread gets to hear of an interrupt by itself

const { wire, heard } = workerData;
let sent = 0;
let received = [];
let size = 0;

/** V8 stops what runs, or what would run next: so only a thread that is busy is told. */
function stopIfBusy(number) {
  if (Atomics.load(heard, 0) >= number) return;
  const session = new inspector.Session();
  session.connectToMainThread();
  // Not kept: a process that ends waits for whoever debugs it, and says so.
  session.post('Runtime.terminateExecution', () => session.disconnect());
}

function take(frame, headSize) {
  const head = JSON.parse(frame.toString('utf8', 8, 8 + headSize));
  parentPort.postMessage({ head, body: frame.toString('utf8', 8 + headSize) });
  if (head.op === 'interrupt') {
    sent += 1;
    setTimeout(stopIfBusy, PATIENCE, sent);
  }
}

const socket = new net.Socket({ fd: wire, readable: true, writable: false });
socket.on('data', (chunk) => {
  received.push(chunk);
  size += chunk.length;
  if (received[0].length < 8 && size >= 8) received = [Buffer.concat(received)];
  while (size >= 8) {
    const [headSize, bodySize] = [received[0].readUInt32BE(0), received[0].readUInt32BE(4)];
    const end = 8 + headSize + bodySize;
    if (size < end) return;
    const whole = received.length > 1 ? Buffer.concat(received) : received[0];
    take(whole.subarray(0, end), headSize);
    received = size > end ? [whole.subarray(end)] : [];
    size -= end;
  }
});
const gone = () => parentPort.postMessage({ head: null });
socket.on('end', gone);
socket.on('error', gone);
