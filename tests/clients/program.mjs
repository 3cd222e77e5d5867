// What the JavaScript client must do against the engine. Prints one line for each thing done.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'

import { NotFoundError, Sandbox } from '@e2b/code-interpreter'

const done = (what) => console.log(what)
const mark = `a b&${randomUUID()}=ü`
const sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { mark }, envs: { FROM: 'create' } })
try {
  const lines = []
  const first = await sandbox.runCode("x = 20; print('hello')\nx + 1", { onStdout: (message) => lines.push(message.line) })
  assert.equal(first.text, '21')
  assert.equal(lines.join(''), 'hello\n')
  assert.equal((await sandbox.runCode('x * 2')).text, '40')
  assert.equal((await sandbox.runCode('1 / 0')).error.name, 'ZeroDivisionError')
  assert.equal((await sandbox.runCode("import os; os.environ['FROM']")).text, 'create')
  done('run_code')
  const context = await sandbox.createCodeContext({ cwd: '/tmp' })
  assert.equal((await sandbox.runCode('import os; os.getcwd()', { context })).text, '/tmp')
  done('contexts')
  const table = (await sandbox.runCode("import pandas; pandas.DataFrame({'a': [1, 2]})")).results[0]
  assert.ok(table.html.includes('<table'))
  const plot = "import matplotlib.pyplot as plt; _ = plt.bar(['p', 'q'], [1, 2]); plt.show()"
  const chart = (await sandbox.runCode(plot)).results[0]
  assert.ok(chart.png)
  assert.equal(chart.chart.type, 'bar')
  done('rich results')

  const seen = []
  const result = await sandbox.commands.run('echo out; echo err >&2', { onStdout: (text) => seen.push(text) })
  assert.deepEqual([result.stdout, result.stderr, result.exitCode, seen.join('')], ['out\n', 'err\n', 0, 'out\n'])
  done('command')
  const handle = await sandbox.commands.run('read line; echo got $line; sleep 30', { background: true, stdin: true })
  assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
  await sandbox.commands.sendStdin(handle.pid, 'this\n')
  assert.equal(await sandbox.commands.kill(handle.pid), true)
  done('background command')

  const text = 'grün\n'.repeat(1000)
  await sandbox.files.write('folder/a.txt', text)
  assert.equal(await sandbox.files.read('folder/a.txt'), text)
  assert.equal((await sandbox.files.read('folder/a.txt', { format: 'bytes' })).length, new TextEncoder().encode(text).length)
  assert.deepEqual((await sandbox.files.list('folder')).map((entry) => entry.name), ['a.txt'])
  await sandbox.files.rename('folder/a.txt', 'folder/b.txt')
  await sandbox.files.remove('folder/b.txt')
  assert.equal(await sandbox.files.exists('folder/b.txt'), false)
  assert.equal(await sandbox.files.makeDir('folder/deeper'), true)
  await assert.rejects(sandbox.files.read('folder/b.txt'), NotFoundError)
  done('files')

  assert.equal(await sandbox.isRunning(), true)
  assert.equal((await sandbox.getInfo()).metadata.mark, mark)
  await sandbox.setTimeout(200_000)
  const pages = Sandbox.list({ query: { metadata: { mark } } })
  assert.deepEqual((await pages.nextItems()).map((info) => info.sandboxId), [sandbox.sandboxId])
  done('list')
  await sandbox.pause()
  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 })
  assert.equal((await again.runCode('x')).text, '20')
  done('pause and resume')
} finally {
  assert.equal(await sandbox.kill(), true)
}
assert.equal(await sandbox.isRunning(), false)
done('kill')
done('all')
