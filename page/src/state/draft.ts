import { effect, signal } from '@preact/signals'
import { merged, type Draft } from './recipe'
import { store, stored } from './ui'

/** What is going to be asked for, as it stands in the fields. */
export const draft = signal<Draft>(merged(stored('darkroom.draft')))
/** What the server said of a field of the draft. */
export const faults = signal<Partial<Record<keyof Draft | 'image' | 'mask' | 'controls' | 'axes', string>>>({})
/** More than the prompt is shown. */
export const more = signal(false)

export function change(values: Partial<Draft>): void {
  draft.value = { ...draft.value, ...values }
  const left = Object.entries(faults.value).filter(([name]) => !(name in values))
  if (left.length < Object.keys(faults.value).length) faults.value = Object.fromEntries(left)
}

let timer = 0
effect(() => {
  const now = draft.value
  clearTimeout(timer)
  timer = setTimeout(() => store('darkroom.draft', now), 200)
})
addEventListener('pagehide', () => store('darkroom.draft', draft.value))
