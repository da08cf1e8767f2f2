import { expect, it } from 'vitest'
import { sha256 } from '../src/state/sha256'

it('is the digest that others find, at every length around a block', async () => {
  expect(sha256(new TextEncoder().encode('abc'))).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad')
  for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_003]) {
    const data = Uint8Array.from({ length }, (_, i) => (i * 31 + length) % 256)
    const theirs = new Uint8Array(await crypto.subtle.digest('SHA-256', data))
    expect(sha256(data), `${length}`).toBe([...theirs].map((byte) => byte.toString(16).padStart(2, '0')).join(''))
  }
})
