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
  /** Settings that the page has no field for, by the server's names: they came with a recipe. */
  further: Record<string, unknown>
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
  further: {},
}

/** A draft from anything: only what is known, and of the right kind. */
export function merged(found: object): Draft {
  const known = Object.entries(found).filter(
    ([name, value]) => name in EMPTY && value !== null && typeof value === typeof EMPTY[name as keyof Draft],
  )
  return { ...EMPTY, ...Object.fromEntries(known) }
}

export type Only = 'all' | 'prompt' | 'seed'

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

/** Settings that only say something where there is a picture to start from. */
const OF_AN_IMAGE = new Set(['exact_steps', 'fill', 'mask_padding', 'mask_blur', 'upscale', 'image_guidance_scale'])
const NUMBERS = new Set(['width', 'height', 'steps', 'guidance', 'n', 'strength'])

/** The draft as the server takes it. Numbers that aren't any go as they are: the server says what is wrong. */
export function asked(from: Draft, withImage: boolean, withMask = false): Record<string, unknown> {
  const { hires, ...further } = from.further
  const body = Object.fromEntries(Object.entries(further).filter(([name]) => withImage || !OF_AN_IMAGE.has(name)))
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
  if (from.hires && !withImage) body.hires = { ...(hires as object | undefined), scale: Number(from.hiresScale), strength: Number(from.hiresStrength) }
  return body
}

/** A recipe's part of a draft. `only` limits it to the prompt or to the seed; `usual`: all settings, with their defaults. */
export function fromRecipe(recipe: Recipe, base: Draft, only: Only = 'all', usual: Recipe = {}): Draft {
  const taken: Partial<Draft> = {}
  for (const [name, key] of Object.entries(FIELDS)) {
    const group = key === 'prompt' || key === 'negative' ? 'prompt' : key
    if (key === 'n' || key === 'model' || (only !== 'all' && group !== only)) continue
    const value = recipe[name]
    const plain = typeof value === 'string' || typeof value === 'number' || typeof value === 'bigint'
    if (plain) Object.assign(taken, { [key]: String(value) })
    else if (only !== 'all' || key !== 'strength') Object.assign(taken, { [key]: EMPTY[key] })
  }
  if (only !== 'all') return { ...base, ...taken }
  const { scale, strength, ...beside } = (recipe.hires ?? {}) as Recipe
  taken.hires = Boolean(recipe.hires)
  if (scale) taken.hiresScale = String(scale)
  if (strength) taken.hiresStrength = String(strength)
  const border = Array.isArray(recipe.outpaint) ? recipe.outpaint.map((pixels) => (pixels ? String(pixels) : '')) : []
  ;[taken.left = '', taken.top = '', taken.right = '', taken.bottom = ''] = border
  taken.onlyMasked = recipe.only_masked === true
  taken.n = '1'
  const own = (name: string) => name in FIELDS || name === 'hires' || name === 'outpaint' || name === 'only_masked'
  const asked = Object.entries(recipe).filter(
    ([name, value]) => name in usual && !own(name) && value !== null && JSON.stringify(value) !== JSON.stringify(usual[name]),
  )
  taken.further = Object.fromEntries(asked)
  if (Object.values(beside).some((value) => value !== null)) taken.further.hires = beside
  return { ...base, ...taken }
}

/** Names of LoRAs that a prompt has tags for. */
export function tagged(prompt: unknown): string[] {
  return typeof prompt === 'string' ? [...prompt.matchAll(/<lora:([^:<>]+)/g)].map((found) => found[1]!.trim()) : []
}

/** A value as people write it: "sepia 0.8, ink 1", "0.2, 0.8", "upscaler lanczos". */
export function shown(value: unknown): string {
  if (Array.isArray(value)) return value.map(shown).join(', ')
  if (typeof value !== 'object' || value === null) return String(value)
  const { name, scale, ...rest } = value as Record<string, unknown>
  if (name !== undefined) return `${String(name)} ${String(scale)}`
  return Object.entries(rest)
    .filter(([, one]) => one !== null)
    .map(([key, one]) => `${key} ${shown(one)}`)
    .join(', ')
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
