// Makes of TypeScript and of modules what V8's REPL evaluates: types are left out, imports become calls.

import module from 'node:module';

let acorn = null;

/** Node's own parser, which it has for its REPL and does not export otherwise. */
function parser() {
  if (acorn === null) {
    const source = process.binding('natives')['internal/deps/acorn/acorn/dist/acorn'];
    const made = { exports: {} };
    new Function('exports', 'module', source)(made.exports, made);
    acorn = made.exports;
  }
  return acorn;
}

/** Do something that Node calls an experiment, which is nothing to tell the user. */
export function quietly(work) {
  const warn = process.emitWarning;
  process.emitWarning = () => {};
  try {
    return work();
  } finally {
    process.emitWarning = warn;
  }
}

/** TypeScript without its types; a SyntaxError where it is none. */
export function withoutTypes(code) {
  if (!module.stripTypeScriptTypes) throw new SyntaxError(`Node ${process.version} reads no TypeScript; 22.13 and later do.`);
  const strip = (mode) => quietly(() => module.stripTypeScriptTypes(code, { mode }));
  try {
    return strip('strip');
  } catch (error) {
    // Enums, namespaces and parameter properties are more than types: they become code.
    if (error.code === 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX') return strip('transform');
    if (error.code !== 'ERR_INVALID_TYPESCRIPT_SYNTAX') throw error;
    const told = new SyntaxError(error.message);
    told.stack = `${error.stack.split('\n\n')[0]}\n\nSyntaxError: ${error.message}`;
    throw told;
  }
}

/** The code as the evaluator gets it: `import` as calls of ours, no `export`, and its last expression handed to us.
 *
 * Handed over, since the evaluator would copy a text that is the value several times. `taken` says where, so that
 * tracebacks can name the columns that the user wrote. What cannot be parsed stays as it is. */
export function prepared(code, number) {
  const program =
    parse(code, { sourceType: 'module' }) ?? parse(code, { sourceType: 'script', allowAwaitOutsideFunction: true });
  if (program === null) return { source: code, taken: null };
  const edits = [];
  visit(program, code, edits);
  let taken = null;
  const last = program.body.at(-1);
  if (last?.type === 'ExpressionStatement') {
    const { start, end } = last.expression;
    const opening = `globalThis[Symbol.for('sandboxkit.take')](${number}, (`;
    edits.push([start, start, opening], [end, end, '))']);
    const before = code.slice(0, start).split('\n');
    taken = { line: before.length, column: before.at(-1).length, width: opening.length };
  }
  let source = code;
  // From the end on, and of two at one place the one that was found first ends up outside.
  for (const [start, end, text] of edits.sort((a, b) => b[0] - a[0])) source = source.slice(0, start) + text + source.slice(end);
  return { source, taken };
}

function parse(code, options) {
  try {
    return parser().parse(code, { ecmaVersion: 'latest', preserveParens: true, ...options });
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

const CALL = "globalThis[Symbol.for('sandboxkit.import')]";

function visit(node, code, edits) {
  switch (node.type) {
    case 'ImportDeclaration':
      edits.push([node.start, node.end, imported(node, code)]);
      return;
    case 'ImportExpression':
      edits.push([node.start, node.start + 'import'.length, CALL]);
      break;
    case 'ExportAllDeclaration':
      edits.push([node.start, node.end, `${awaited(node)};`]);
      return;
    case 'ExportNamedDeclaration':
      if (node.declaration) edits.push([node.start, node.declaration.start, '']);
      else edits.push([node.start, node.end, node.source ? `${awaited(node)};` : '']);
      break;
    case 'ExportDefaultDeclaration': {
      const { declaration } = node;
      const isNameless = /^(?:Function|Class)Declaration$/.test(declaration.type) && !declaration.id;
      edits.push([node.start, declaration.start, isNameless ? '(' : '']);
      if (isNameless) edits.push([declaration.end, declaration.end, ')']);
      break;
    }
  }
  for (const value of Object.values(node)) {
    for (const child of Array.isArray(value) ? value : [value]) {
      if (child && typeof child.type === 'string') visit(child, code, edits);
    }
  }
}

function awaited(node) {
  const attributes = (node.attributes ?? []).map(({ key, value }) => `${JSON.stringify(key.name ?? key.value)}: ${value.raw}`);
  const options = attributes.length ? `, { with: { ${attributes.join(', ')} } }` : '';
  return `await ${CALL}(${node.source.raw}${options})`;
}

function imported(node, code) {
  if (!node.specifiers.length) return `${awaited(node)};`;
  const names = node.specifiers.filter(({ type }) => type !== 'ImportNamespaceSpecifier').map((specifier) => {
    const name = specifier.type === 'ImportDefaultSpecifier' ? 'default' : code.slice(specifier.imported.start, specifier.imported.end);
    return `${name}: ${specifier.local.name}`;
  });
  const whole = node.specifiers.find(({ type }) => type === 'ImportNamespaceSpecifier')?.local.name;
  const pattern = names.length ? `{ ${names.join(', ')} }` : '';
  if (!whole) return `const ${pattern} = ${awaited(node)};`;
  return `const ${whole} = ${awaited(node)}${pattern ? `, ${pattern} = ${whole}` : ''};`;
}
