// What a JavaScript value shows of itself, as a MIME bundle, and that as E2B's fields on one line of JSON.

import util from 'node:util';

const FIELDS = {
  'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown', 'image/svg+xml': 'svg', 'image/png': 'png',
  'image/jpeg': 'jpeg', 'application/pdf': 'pdf', 'text/latex': 'latex', 'application/json': 'json',
  'application/javascript': 'javascript', 'e2b/data': 'data', 'e2b/chart': 'chart',
};
const DISPLAY = Symbol.for('Jupyter.display');
const METHODS = {
  _toHtml: 'text/html', _toMarkdown: 'text/markdown', _toSvg: 'image/svg+xml', _toPng: 'image/png',
  _toJpeg: 'image/jpeg', _toLatex: 'text/latex',
};
const MAX_BODY = 64 * 1024 * 1024;

class ResultTooLarge extends Error {
  name = 'ResultTooLarge';
}

function tooLarge(size) {
  return new ResultTooLarge(`This result is ${size >> 20} MiB long; the limit is 64 MiB. Write it to a file instead.`);
}

/** The forms of a value: what its own methods say (Jupyter's symbol, ijavascript's names), its text, JSON for data. */
export function bundleOf(value) {
  const own = value?.[DISPLAY] ?? value?._toMime;
  if (typeof own === 'function') {
    const shown = own.call(value);
    if (shown instanceof Promise) return shown.then((bundle) => bundle ?? plain(value));
    if (shown !== null && typeof shown === 'object') return shown;
  }
  return plain(value);
}

function plain(value) {
  if (typeof value === 'string' && value.length > MAX_BODY) throw tooLarge(value.length);
  const bundle = { 'text/plain': util.inspect(value, { maxStringLength: Infinity }) };
  for (const [method, mime] of Object.entries(METHODS)) {
    if (typeof value?.[method] === 'function') bundle[mime] = value[method]();
  }
  if (isData(value)) {
    try {
      bundle['application/json'] = JSON.parse(JSON.stringify(value));
    } catch {
      // A circle, or a number that JSON has no form for: its text says it.
    }
  }
  return bundle;
}

function isData(value) {
  if (Array.isArray(value)) return true;
  if (value === null || typeof value !== 'object') return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}

/** A bundle as one result; its JSON is left out where it makes it too large. */
export function encode(bundle, isMain) {
  const named = {};
  for (const [mime, given] of Object.entries(bundle)) {
    const value = ArrayBuffer.isView(given) ? Buffer.from(given.buffer, given.byteOffset, given.byteLength).toString('base64') : given;
    if (mime in FIELDS) named[FIELDS[mime]] = value;
    else (named.extra ??= {})[mime] = value;
  }
  const { text } = named;
  if (typeof text === 'string' && text.length > 1 && text[0] === text.at(-1) && `'"`.includes(text[0])) {
    named.text = text.slice(1, -1); // of a string, E2B gives the string
  }
  named.is_main_result = isMain;
  let body = line(named);
  if (body.length > MAX_BODY && 'json' in named) {
    delete named.json;
    body = line(named);
  }
  if (body.length > MAX_BODY) {
    throw tooLarge(body.length);
  }
  return body;
}

/** One line of ASCII: clients cut the stream into lines at characters that JSON need not escape. */
export function line(named) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return Buffer.from(JSON.stringify(named).replace(/[\u007f-\uffff]/g, escaped), 'latin1');
}
