// The JavaScript and TypeScript interpreter of one context: cells that come over descriptor 3, run by V8's REPL rules.
//
// Runs inside the box as `node kernel_node.mjs javascript|typescript`; the wire is described in the engine's
// `interpreter/_frames.py`. V8 itself evaluates (Runtime.evaluate, replMode), as in a browser's console: `await` works
// at the top level, `let` and `const` live on and may be declared again, and the last expression is the value.
// A worker thread reads the wire, so that an interrupt is heard while a cell keeps this thread busy.

import fs from 'node:fs';
import inspector from 'node:inspector';
import module from 'node:module';
import path from 'node:path';
import { Writable } from 'node:stream';
import util from 'node:util';
import v8 from 'node:v8';
import vm from 'node:vm';
import { Worker } from 'node:worker_threads';
import { bundleOf, encode, line } from './kernel_node_mime.mjs';
import { prepared, quietly, withoutTypes } from './kernel_node_syntax.mjs';

const WIRE = 3;
const LONGEST = 4 * 1024 * 1024; // of an error's texts
const OURS = /^ +at (?:.*\()?(?:node:inspector|file:.*\/kernel_node|new Promise \(<anonymous>\)$|process\.processTicksAndRejections|Worker\.emit|MessagePort\.)/;
const IMPORT = Symbol.for('sandboxkit.import');
const TAKE = Symbol.for('sandboxkit.take');
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Write all of it before going on: nothing is buffered that a crash would lose, and a slow reader slows the writer. */
function writeAll(descriptor, data) {
  let at = 0;
  while (at < data.length) {
    try {
      at += fs.writeSync(descriptor, data, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(sleeper, 0, 0, 1);
    }
  }
}

function send(head, body = Buffer.alloc(0)) {
  const encoded = Buffer.from(JSON.stringify(head));
  const lengths = Buffer.alloc(8);
  lengths.writeUInt32BE(encoded.length, 0);
  lengths.writeUInt32BE(body.length, 4);
  writeAll(WIRE, Buffer.concat([lengths, encoded, body]));
}

class Output extends Writable {
  constructor(fd) {
    super({ decodeStrings: true });
    this.fd = fd;
  }
  _write(chunk, encoding, done) {
    writeAll(this.fd, chunk);
    done();
  }
}

class Interrupted extends Error {
  name = 'Interrupted';
  message = 'The code was interrupted.';
}

/** What the cells share: the evaluator, and the cell that runs. */
class Kernel {
  constructor(language) {
    this.language = language;
    this.count = 0;
    this.cell = null;
    this.interrupted = null;
    this.takenAt = new Map();
    this.session = new inspector.Session();
    this.session.connect();
    // V8's own name for a function of ours: by calling it, values come from the evaluator to us as they are.
    this.hide(TAKE, (number, value) => { if (number === this.count) this.taken = value; });
    this.session.post('Runtime.evaluate', { expression: `globalThis[Symbol.for('${TAKE.description}')]` }, (_, answer) => {
      this.takerId = answer.result.objectId;
    });
    this.hide(IMPORT, (specifier, options) => this.import(specifier, options));
    this.hide('require', module.createRequire(path.join(process.cwd(), '[cell].js')));
    this.hide('display', (value) => this.show(bundleOf(value), false));
    this.hide('$$', Object.fromEntries(
      Object.entries({
        text: 'text/plain', html: 'text/html', markdown: 'text/markdown', svg: 'image/svg+xml', png: 'image/png',
        jpeg: 'image/jpeg', latex: 'text/latex', json: 'application/json',
      }).map(([name, mime]) => [name, (data) => this.show({ [mime]: data }, true)]),
    ));
    globalThis.$$.mime = (bundle) => this.show(bundle, true);
  }

  hide(name, value) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }

  /** `import()` as a file in the working directory would do it: V8 knows none for what a REPL evaluates. */
  import(specifier, options) {
    const filename = path.join(process.cwd(), '[cell].mjs');
    const importModuleDynamically = vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
    const script = new vm.Script('(name, options) => import(name, options)', { filename, importModuleDynamically });
    return quietly(() => script.runInThisContext()(specifier, options));
  }

  // -- one cell -------------------------------------------------------------------------------------------------------

  async run(cell, { code, envs }) {
    this.cell = cell;
    this.count += 1;
    const before = Object.fromEntries(Object.keys(envs).map((name) => [name, process.env[name]]));
    Object.assign(process.env, envs);
    send({ op: 'began', cell, count: this.count });
    const interrupted = new Promise((resolve) => { this.interrupted = () => resolve(true); });
    try {
      if (await Promise.race([this.carryOut(cell, code), interrupted])) {
        throw new Interrupted();
      }
    } catch (error) {
      this.fail(this.describe(error));
    }
    this.interrupted = null;
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    this.cell = null;
    send({ op: 'ended', cell, exiting: false });
  }

  async carryOut(cell, code) {
    let source = code;
    if (this.language === 'typescript') source = withoutTypes(code);
    let outcome = await this.evaluate(source);
    if (outcome.isBroken && this.language === 'javascript') {
      // E2B runs both by one kernel: what is no JavaScript may be TypeScript.
      try {
        outcome = await this.evaluate(withoutTypes(code));
      } catch {
        // It is neither: the first error is what it is about.
      }
    }
    if (this.cell !== cell) return; // interrupted meanwhile
    if ('thrown' in outcome) {
      this.fail(this.describe(outcome.thrown, outcome.where));
      return;
    }
    // A promise as the last value is awaited, as in E2B's kernel.
    const value = util.types.isPromise(outcome.value) ? await outcome.value : outcome.value;
    if (this.cell !== cell || value === undefined) return;
    this.show(await bundleOf(value), true);
  }

  evaluate(source) {
    const name = `[cell-${this.count}]`;
    const { source: made, taken } = prepared(source, this.count);
    this.takenAt.set(this.count, taken);
    const expression = `${made}\n//# sourceURL=${name}`;
    this.taken = undefined;
    return new Promise((resolve, reject) => {
      this.session.post('Runtime.evaluate', { expression, replMode: true, objectGroup: 'cell' }, (error, answer) => {
        if (error) {
          reject(new Interrupted()); // V8 was told to stop: it has no other reason
          return;
        }
        const { result, exceptionDetails: details } = answer;
        const value = taken && !details ? this.taken : this.take(details?.exception ?? result);
        this.taken = undefined;
        this.session.post('Runtime.releaseObjectGroup', { objectGroup: 'cell' });
        if (!details) {
          resolve({ value });
          return;
        }
        // V8 names a script only where it could not be compiled, and has run nothing of it then.
        const isBroken = details.scriptId !== undefined && value instanceof SyntaxError;
        const where = isBroken ? `${name}:${details.lineNumber + 1}:${details.columnNumber + 1}` : '';
        resolve({ thrown: value, isBroken, where });
      });
    });
  }

  take(remote) {
    const { objectId, value, unserializableValue } = remote;
    const given = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
    const functionDeclaration = `function (value) { this(${this.count}, value); }`;
    this.session.post('Runtime.callFunctionOn', { objectId: this.takerId, functionDeclaration, arguments: [given] });
    return this.taken;
  }

  // -- what it shows --------------------------------------------------------------------------------------------------

  show(bundle, isMain) {
    if (bundle instanceof Promise) return bundle.then((whole) => this.show(whole, isMain));
    if (this.cell !== null) send({ op: 'result', cell: this.cell }, encode(bundle, isMain));
    return undefined;
  }

  fail(shown) {
    if (this.cell !== null) send({ op: 'error', cell: this.cell }, line(shown));
  }

  /** Name, value and traceback of whatever was thrown, without the lines that are ours. */
  describe(thrown, where = '') {
    if (!util.types.isNativeError(thrown) && !(thrown instanceof Error)) {
      const value = typeof thrown === 'string' ? thrown.slice(0, LONGEST) : util.inspect(thrown);
      return { name: 'Error', value, traceback: `Uncaught ${util.inspect(thrown)}` };
    }
    let lines = util.inspect(thrown).replace(/^\[([^]*)\]$/, '$1').split('\n').filter((text) => !OURS.test(text));
    if (where) lines = [`${thrown.name}: ${thrown.message}`, `    at ${where}`];
    const name = String(thrown.name || 'Error');
    return { name, value: String(thrown.message).slice(0, LONGEST), traceback: this.asWritten(lines.join('\n')).slice(-LONGEST) };
  }

  /** The columns as the user wrote them, beside what `prepared` has put there. */
  asWritten(traceback) {
    return traceback.replace(/\[cell-(\d+)\]:(\d+):(\d+)/g, (all, cell, line, column) => {
      const at = this.takenAt.get(Number(cell));
      if (!at || Number(line) !== at.line || Number(column) <= at.column + at.width) return all;
      return `[cell-${cell}]:${line}:${column - at.width}`;
    });
  }

  leave() {
    if (this.cell !== null) send({ op: 'ended', cell: this.cell, exiting: true });
  }
}

/** Node loads what reads types at its first use, and leaves much to be collected. Where V8 collected it in the middle of
 * a first cell, it ended with "Invoke in DisallowJavascriptExecutionScope": 7 times in 400, and never in 400 after this. */
function beginClean(language) {
  if (language === 'typescript' && module.stripTypeScriptTypes) withoutTypes('let x: 1');
  v8.setFlagsFromString('--expose-gc');
  vm.runInNewContext('gc')();
  v8.setFlagsFromString('--no-expose-gc');
}

function main() {
  const language = process.argv[2] ?? 'javascript';
  process.argv.length = 1;
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const stream = new Output(fd);
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream });
  }
  beginClean(language);
  const kernel = new Kernel(language);
  // What fails between cells, or beside one, ends nothing: it is told like a warning.
  const told = (error) => process.stderr.write(`${kernel.describe(error).traceback}\n`);
  process.on('uncaughtException', told);
  process.on('unhandledRejection', told);
  process.on('SIGINT', () => {}); // children that share the group end by it; we are told over the wire
  process.on('exit', () => kernel.leave());
  const heard = new Int32Array(new SharedArrayBuffer(4));
  const reader = new Worker(new URL('./kernel_node_reader.mjs', import.meta.url), { workerData: { wire: WIRE, heard } });
  reader.on('message', ({ head, body }) => {
    if (head === null) process.exit(0);
    else if (head.op === 'adopt') Object.assign(process.env, JSON.parse(body).envs);
    else if (head.op === 'execute') kernel.run(head.cell, JSON.parse(body));
    else if (head.op === 'interrupt') {
      Atomics.add(heard, 0, 1);
      kernel.interrupted?.();
    }
  });
  reader.once('online', () => send({ op: 'ready' }));
}

main();
