import { describe, expect, it } from 'vitest'
import { completing, loras, styled, withLora, withoutLora, withWord } from '../src/state/words'

describe('what is put into a prompt', () => {
  it('adds a LoRA once and then changes its weight', () => {
    expect(withLora('', 'ink', '1')).toBe('<lora:ink:1>')
    expect(withLora('a fox ', 'ink', '0.8')).toBe('a fox <lora:ink:0.8>')
    expect(withLora('a <lora:ink:0.8:0.5> fox', 'ink', '1.2')).toBe('a <lora:ink:1.2> fox')
    expect(withLora('<lora:ink> fox', 'ink', '')).toBe('<lora:ink:1> fox')
    expect(withLora('<lora:ink-xl:1> fox', 'ink', '1')).toBe('<lora:ink-xl:1> fox <lora:ink:1>')
    expect(withLora('a', 'in(k).*', '1')).toBe('a <lora:in(k).*:1>')
  })
  it('takes one out', () => {
    expect(withoutLora('a fox <lora:ink:0.8>, red', 'ink')).toBe('a fox, red')
    expect(withoutLora('a fox <lora:ink-xl:1>', 'ink')).toBe('a fox <lora:ink-xl:1>')
    expect(loras('a <lora:ink:0.8> <lora:sepia> b')).toEqual(['ink', 'sepia'])
  })
  it('adds a word once', () => {
    expect(withWord('', 'ohwx')).toBe('ohwx')
    expect(withWord('a fox', 'ohwx')).toBe('a fox, ohwx')
    expect(withWord('a fox, OHWX', 'ohwx')).toBe('a fox, OHWX')
    expect(withWord('a fox <lora:ink:1>', 'ohwx')).toBe('a fox <lora:ink:1> ohwx')
  })
  it('puts a prompt into a style', () => {
    expect(styled('a fox', 'ink, black')).toBe('a fox, ink, black')
    expect(styled(' a $& fox', 'drawing of {prompt}, {prompt}')).toBe('drawing of a $& fox, a $& fox')
    expect(styled('', 'ink')).toBe('ink')
    expect(styled('a fox', ' ')).toBe('a fox')
  })
  it('offers the rest of a word', () => {
    const words = ['fig', 'fox', 'four', 'owl']
    expect(completing('a fo', 4, words)).toEqual({ start: 2, end: 4, options: ['fox', 'four'] })
    expect(completing('a FO, red', 4, words)?.options).toEqual(['fox', 'four'])
    expect(completing('a fox', 5, words)).toBeNull() // it is whole
    expect(completing('a fo', 3, words)).toBeNull() // in the middle of a word
    expect(completing('a ', 2, words)).toBeNull()
    expect(completing('a zebra', 7, words)).toBeNull()
  })
})
