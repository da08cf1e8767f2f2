/** PNG files without what was written into them: a recipe is in their text chunks. */

/** Chunks that pixels and their colours need; all others (texts, EXIF, times) are left out. */
const NEEDED = new Set(['IHDR', 'PLTE', 'IDAT', 'IEND', 'tRNS', 'gAMA', 'cHRM', 'sRGB', 'iCCP', 'cICP', 'sBIT', 'pHYs'])
const HEAD = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]

/** A PNG with the same pixels and no texts. Raises a RangeError for anything else. */
export function bare(data: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer>[] {
  if (HEAD.some((byte, i) => data[i] !== byte)) throw new RangeError('not a PNG')
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  const kept = [data.subarray(0, HEAD.length)]
  for (let at = HEAD.length; at < data.length; ) {
    const end = at + 12 + view.getUint32(at) // length, kind, data, checksum
    if (end > data.length) throw new RangeError('a PNG that was cut short')
    if (NEEDED.has(String.fromCharCode(...data.subarray(at + 4, at + 8)))) kept.push(data.subarray(at, end))
    at = end
  }
  return kept
}
