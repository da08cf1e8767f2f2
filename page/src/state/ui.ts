import { effect, signal } from '@preact/signals'
import { api, Problem } from '../api'
import { chosen, type Language } from '../i18n'

/** What of the page is shown, and what it says. */

export type View = 'draw' | 'gallery' | 'sweeps' | 'settings'
/** The grid that is looked at. */
export const sweepId = signal<string | null>(null)
export const view = signal<View>('draw')
/** The picture that the viewer shows. */
export const opened = signal<string | null>(null)

/** A sentence at the foot of the page, with one thing that can be done about it. */
export interface Notice {
  text: string
  action?: { label: string; run: () => void }
  bad?: boolean
}
export const notice = signal<Notice | null>(null)
/** A question that something waits for. */
export const question = signal<{ text: string; yes: string; answer: (yes: boolean) => void } | null>(null)
export const confirmed = (text: string, yes: string) => new Promise<boolean>((answer) => (question.value = { text, yes, answer }))
/** What a screen reader is told. */
export const said = signal('')
let timer = 0

export function tell(text: string, more: Omit<Notice, 'text'> & { seconds?: number } = {}): void {
  clearTimeout(timer)
  notice.value = { text, ...more }
  timer = setTimeout(() => (notice.value = null), (more.seconds ?? (more.bad ? 12 : 5)) * 1000)
}

export function tellProblem(error: unknown): void {
  tell(error instanceof Error ? error.message : String(error), { bad: true })
}

/** Settings of whoever looks: kept by the server by key, and here for the first paint. */
export interface Preferences {
  language: Language | null
  theme: 'system' | 'light' | 'dark'
  previews: boolean
  presets: Record<string, Record<string, unknown>>
  styles: Record<string, { prompt: string; negative: string }>
}
const usual: Preferences = { language: null, theme: 'system', previews: true, presets: {}, styles: {} }
export const preferences = signal<Preferences>({ ...usual, ...stored('darkroom.preferences') })

export function stored(name: string): object {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(name) ?? '{}')
    return typeof found === 'object' && found !== null ? found : {}
  } catch {
    return {}
  }
}

export function store(name: string, value: object): void {
  try {
    localStorage.setItem(name, JSON.stringify(value))
  } catch {
    // A browser that keeps nothing: the page works all the same.
  }
}

export function prefer(change: Partial<Preferences>): void {
  preferences.value = { ...preferences.value, ...change }
  api.prefer(preferences.value).catch(tellProblem)
}

export async function readPreferences(): Promise<void> {
  try {
    preferences.value = { ...usual, ...preferences.value, ...(await api.preferences()) }
  } catch (error) {
    if (!(error instanceof Problem)) throw error // without them the page works as it was left on this device
  }
}

effect(() => {
  const { language, theme } = preferences.value
  chosen.value = language
  store('darkroom.preferences', preferences.value)
  if (theme === 'system') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = theme
})

function readHash(): void {
  const [first, second] = location.hash.slice(1).split('/')
  if (first === 'picture' && second) {
    opened.value = second
    return
  }
  opened.value = null
  view.value = first === 'gallery' || first === 'settings' || first === 'sweeps' ? first : 'draw'
  sweepId.value = first === 'sweeps' && second ? second : null
}

export function show(next: View): void {
  location.hash = next
}

export function openPicture(id: string): void {
  if (opened.value) history.replaceState(null, '', `#picture/${id}`)
  else history.pushState(null, '', `#picture/${id}`)
  opened.value = id
}

export function closePicture(): void {
  history.replaceState(null, '', `#${view.value}${view.value === 'sweeps' && sweepId.value ? `/${sweepId.value}` : ''}`)
  opened.value = null
}

addEventListener('hashchange', readHash)
addEventListener('popstate', readHash)
readHash()
