import { describe, expect, it } from 'vitest'
import { asked, EMPTY, fromRecipe, merged, shown, tagged, weighed } from '../src/state/recipe'
import { dragged, laidOut } from '../src/state/border'
import { bare } from '../src/state/png'
import { fitted, held, placed, zoomed } from '../src/zoom'

describe('a draft', () => {
  it('leaves to the model what was left open', () => {
    expect(asked({ ...EMPTY, prompt: 'a fox' }, false)).toEqual({ prompt: 'a fox', n: 1 })
  })
  it('sends numbers as numbers, seeds as texts, and -1 as no seed', () => {
    const draft = { ...EMPTY, steps: '20', guidance: '2.5', seed: '18446744073709551615', width: '64' }
    expect(asked(draft, false)).toMatchObject({ steps: 20, guidance_scale: 2.5, seed: '18446744073709551615', width: 64 })
    expect(asked({ ...EMPTY, seed: ' -1 ' }, false)).not.toHaveProperty('seed')
  })
  it('says strength and no size where it starts from a picture, and no second pass', () => {
    const draft = { ...EMPTY, width: '64', hires: true }
    expect(asked(draft, true)).toEqual({ prompt: '', n: 1, strength: 0.6 })
    expect(asked(draft, false)).toEqual({ prompt: '', n: 1, width: 64, hires: { scale: 2, strength: 0.5 } })
  })
  it('extends a picture, and works on the masked part where there is one', () => {
    const draft = { ...EMPTY, right: '32', onlyMasked: true }
    expect(asked(draft, true)).toMatchObject({ outpaint: [0, 0, 32, 0] })
    expect(asked(draft, true)).not.toHaveProperty('only_masked')
    expect(asked(draft, true, true)).toMatchObject({ only_masked: true })
    expect(asked(draft, false)).toEqual({ prompt: '', n: 1 })
  })
  it('takes of what was kept only what it knows', () => {
    expect(merged({ prompt: 'a', steps: 3, unknown: 'x', hires: true })).toEqual({ ...EMPTY, prompt: 'a', hires: true })
  })
})

describe('a recipe', () => {
  const recipe = { prompt: 'a fox', negative_prompt: 'dog', seed: '7', steps: 9, sampler: 'ddim', model: 'other', hires: { scale: 3, strength: 0.4 } }
  const mine = { ...EMPTY, prompt: 'mine', seed: '1', width: '640', schedule: 'karras', model: 'here', n: '4' }
  it('brings all its settings, and none of mine is left but the model', () => {
    expect(fromRecipe(recipe, mine)).toMatchObject({
      prompt: 'a fox', negative: 'dog', seed: '7', steps: '9', sampler: 'ddim', schedule: '', width: '', model: 'here', n: '1', hires: true, hiresScale: '3',
    })
  })
  it('brings its prompt or its seed alone', () => {
    expect(fromRecipe(recipe, mine, 'prompt')).toEqual({ ...mine, prompt: 'a fox', negative: 'dog' })
    expect(fromRecipe(recipe, mine, 'seed')).toEqual({ ...mine, seed: '7' })
  })
})

describe('a weight', () => {
  const up = (text: string, at: number) => weighed(text, at, at, 0.1).text
  it('is put around the word at the cursor, raised, and taken away at 1', () => {
    expect(up('a red fox', 3)).toBe('a (red:1.1) fox')
    expect(up('a (red:1.1) fox', 4)).toBe('a (red:1.2) fox')
    expect(weighed('a (red:1.1) fox', 4, 4, -0.1).text).toBe('a red fox')
    expect(weighed('a red fox', 2, 9, 0.1).text).toBe('a (red fox:1.1)')
    expect(up('a ', 2)).toBe('a ')
  })
})

describe('zooming', () => {
  const picture = { width: 100, height: 50 }
  const box = { width: 200, height: 200 }
  it('fits the whole, keeps the point under the finger, and keeps the picture in sight', () => {
    expect(fitted(picture, box, 8)).toEqual({ scale: 2, x: 0, y: 50 })
    const near = zoomed({ scale: 2, x: 0, y: 50 }, 2, 100, 100, 1)
    expect([(100 - near.x) / near.scale, (100 - near.y) / near.scale]).toEqual([50, 25])
    expect(held({ scale: 4, x: 50, y: -900 }, picture, box)).toEqual({ scale: 4, x: 0, y: 0 })
  })
})

describe('all of a recipe', () => {
  const usual = { clip_skip: 0, noise: 'cpu', eta: null, fill: null, hires: null, outpaint: null, guidance_interval: null, steps: null }
  const recipe = {
    prompt: 'a fox', steps: 9, clip_skip: 2, noise: 'cpu', eta: null, fill: 'noise', guidance_interval: [0.2, null], model_hash: 'x',
    outpaint: [0, 8, 32, 0], only_masked: true, hires: { scale: 2, strength: 0.5, steps: 4, upscaler: 'lanczos' },
  }
  const taken = fromRecipe(recipe, EMPTY, 'all', usual)
  it('brings what the page has no field for, and nothing that is as usual or nobody can ask for', () => {
    expect(taken.further).toEqual({ clip_skip: 2, fill: 'noise', guidance_interval: [0.2, null], hires: { steps: 4, upscaler: 'lanczos' } })
    expect(taken).toMatchObject({ left: '', top: '8', right: '32', bottom: '', onlyMasked: true })
  })
  it('is asked for again as it was', () => {
    expect(asked(taken, false)).toEqual({
      prompt: 'a fox', n: 1, steps: 9, clip_skip: 2, guidance_interval: [0.2, null], hires: recipe.hires,
    })
    expect(asked(taken, true, true)).toMatchObject({ outpaint: [0, 8, 32, 0], only_masked: true, fill: 'noise', clip_skip: 2 })
  })
  it('is forgotten with the next one', () => {
    expect(fromRecipe({ prompt: 'b' }, taken, 'all', usual).further).toEqual({})
    expect(fromRecipe({ prompt: 'b' }, taken, 'prompt', usual).further).toEqual(taken.further)
  })
  it('names the LoRAs of its prompt, and is written as people write', () => {
    expect(tagged('a <lora:ink:0.8> fox <lora: my lora >')).toEqual(['ink', 'my lora'])
    expect(shown([{ name: 'ink', scale: 0.8, text_scale: null }])).toBe('ink 0.8')
    expect(shown({ steps: 4, upscaler: 'lanczos', x: null })).toBe('steps 4, upscaler lanczos')
  })
})

describe('a PNG without its texts', () => {
  const chunk = (kind: string, data: number[]) => [0, 0, 0, data.length, ...[...kind].map((letter) => letter.charCodeAt(0)), ...data, 1, 2, 3, 4]
  const head = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]
  const file = (...chunks: number[][]) => new Uint8Array([...head, ...chunks.flat()])
  const joined = (parts: Uint8Array[]) => parts.flatMap((part) => [...part])
  it('keeps the pixels, byte for byte', () => {
    const whole = file(chunk('IHDR', [1]), chunk('tEXt', [65, 66]), chunk('iTXt', []), chunk('sRGB', [0]), chunk('eXIf', [1]), chunk('IDAT', [7, 8]), chunk('IEND', []))
    expect(joined(bare(whole))).toEqual([...file(chunk('IHDR', [1]), chunk('sRGB', [0]), chunk('IDAT', [7, 8]), chunk('IEND', []))])
  })
  it('is none of a file that is no PNG or was cut short', () => {
    expect(() => bare(new Uint8Array([1, 2, 3]))).toThrow('not a PNG')
    expect(() => bare(file(chunk('IDAT', [1, 2, 3]).slice(0, 11)))).toThrow()
    expect(() => bare(file([0, 0, 9, 9, 1, 2, 3, 4, 5, 6, 7, 8]))).toThrow('cut short')
  })
})

describe('an original', () => {
  it('lies where it was extended from', () => {
    expect(placed(128, 64, [32, 0, 0, 16])).toEqual([0.25, 0, 0.75, 0.75])
    expect(placed(128, 64, null)).toEqual([0, 0, 1, 1])
  })
})

describe('a border', () => {
  const picture = { width: 100, height: 60 }
  const most = { side: 256, pixels: 200 * 200 }
  const none = [0, 0, 0, 0] as const
  it('goes outwards on a grid of 8, and not into the picture', () => {
    expect(dragged(none, [1, 0], [21, 999], picture, most)).toEqual([0, 0, 24, 0])
    expect(dragged([16, 8, 0, 0], [-1, -1], [-99, 5], picture, most)).toEqual([0, 16, 0, 0])
    expect(dragged(none, [0, 1], [50, -5], picture, most)).toEqual(none)
  })
  it('ends at what the server draws', () => {
    expect(dragged(none, [1, 0], [9999, 0], picture, most)).toEqual([0, 0, 152, 0])
    const [left, top, right, bottom] = dragged(none, [1, 1], [9999, 9999], picture, most)
    expect((100 + left + right) * (60 + top + bottom)).toBeLessThanOrEqual(most.pixels)
    expect(right % 8 || bottom % 8).toBe(0)
  })
  it('is shown whole, with the picture where it is', () => {
    const { scale, x, y } = laidOut(picture, [20, 0, 0, 40], { width: 240, height: 240 })
    expect(scale).toBe(240 / 144)
    expect(x - 20 * scale).toBeCloseTo(240 - (x + 100 * scale))
    expect(y).toBeCloseTo(240 - (y + 100 * scale))
  })
})
