import type { Recipe } from '../api'

/** What is going to be asked for. Numbers are kept as they were typed; "" leaves a setting to the model. */
export interface Draft {
  prompt: string
  negative: string
  width: string
  height: string
  steps: string
  guidance: string
  seed: string
  sampler: string
  schedule: string
  model: string
  n: string
  strength: string
  onlyMasked: boolean
  left: string // pixels that the starting picture is extended by
  top: string
  right: string
  bottom: string
  hires: boolean
  hiresScale: string
  hiresStrength: string
}

export const EMPTY: Draft = {
  prompt: '',
  negative: '',
  width: '',
  height: '',
  steps: '',
  guidance: '',
  seed: '',
  sampler: '',
  schedule: '',
  model: '',
  n: '1',
  strength: '0.6',
  onlyMasked: false,
  left: '',
  top: '',
  right: '',
  bottom: '',
  hires: false,
  hiresScale: '2',
  hiresStrength: '0.5',
}

/** A draft from anything: only what is known, and of the right kind. */
export function merged(found: object): Draft {
  const known = Object.entries(found).filter(([name, value]) => name in EMPTY && typeof value === typeof EMPTY[name as keyof Draft])
  return { ...EMPTY, ...Object.fromEntries(known) }
}

/** The server's name of each field of the draft. */
export const FIELDS: Record<string, keyof Draft> = {
  prompt: 'prompt',
  negative_prompt: 'negative',
  width: 'width',
  height: 'height',
  steps: 'steps',
  guidance_scale: 'guidance',
  seed: 'seed',
  sampler: 'sampler',
  schedule: 'schedule',
  model: 'model',
  n: 'n',
  strength: 'strength',
}

const NUMBERS = new Set(['width', 'height', 'steps', 'guidance', 'n', 'strength'])

/** The draft as the server takes it. Numbers that aren't any go as they are: the server says what is wrong. */
export function asked(from: Draft, withImage: boolean, withMask = false): Record<string, unknown> {
  const body: Record<string, unknown> = {}
  for (const [name, key] of Object.entries(FIELDS)) {
    const text = String(from[key]).trim()
    if (key === 'prompt') body.prompt = from.prompt
    else if (text === '' || (key === 'seed' && text === '-1') || (key === 'strength' && !withImage)) continue
    else if (withImage && (key === 'width' || key === 'height')) continue
    else body[name] = NUMBERS.has(key) && !Number.isNaN(Number(text)) ? Number(text) : text
  }
  if (withImage) {
    const border = [from.left, from.top, from.right, from.bottom].map(Number)
    if (border.some((pixels) => pixels > 0)) body.outpaint = border
    if (withMask && from.onlyMasked) body.only_masked = true
  }
  if (from.hires && !withImage) body.hires = { scale: Number(from.hiresScale), strength: Number(from.hiresStrength) }
  return body
}

/** A recipe's part of a draft. `only` limits it to the prompt or to the seed. */
export function fromRecipe(recipe: Recipe, base: Draft, only: 'all' | 'prompt' | 'seed' = 'all'): Draft {
  const taken: Partial<Draft> = {}
  for (const [name, key] of Object.entries(FIELDS)) {
    const group = key === 'prompt' || key === 'negative' ? 'prompt' : key
    if (key === 'n' || key === 'model' || (only !== 'all' && group !== only)) continue
    const value = recipe[name]
    const plain = typeof value === 'string' || typeof value === 'number' || typeof value === 'bigint'
    if (plain) Object.assign(taken, { [key]: String(value) })
    else if (only !== 'all' || key !== 'strength') Object.assign(taken, { [key]: EMPTY[key] })
  }
  if (only === 'all') {
    const hires = recipe.hires as { scale?: number; strength?: number } | null | undefined
    taken.hires = Boolean(hires)
    if (hires?.scale) taken.hiresScale = String(hires.scale)
    if (hires?.strength) taken.hiresStrength = String(hires.strength)
    taken.n = '1'
  }
  return { ...base, ...taken }
}

/** The prompt with the weight of the word at the cursor (or of the selection) changed: `(word:1.1)`. */
export function weighed(text: string, start: number, end: number, by: number): { text: string; start: number; end: number } {
  if (start === end) {
    while (start > 0 && /[^\s,()]/.test(text[start - 1]!)) start--
    while (end < text.length && /[^\s,()]/.test(text[end]!)) end++
    const colon = text.slice(start, end).match(/:[\d.]+$/) // the cursor stands in "(word:1.1)"
    if (colon && text[end] === ')') end -= colon[0].length
  }
  if (start === end) return { text, start, end }
  const before = text.slice(0, start)
  const after = text.slice(end)
  const known = before.endsWith('(') ? after.match(/^:([\d.]+)\)/) : null
  const weight = Math.round(Math.max(0, Math.min(2, Number(known?.[1] ?? 1) + by)) * 100) / 100
  const head = known ? before.slice(0, -1) : before
  const tail = known ? after.slice(known[0].length) : after
  const word = text.slice(start, end)
  if (weight === 1) return { text: head + word + tail, start: head.length, end: head.length + word.length }
  return { text: `${head}(${word}:${weight})${tail}`, start: head.length + 1, end: head.length + 1 + word.length }
}
