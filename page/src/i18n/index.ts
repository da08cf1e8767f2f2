import { computed, effect, signal } from '@preact/signals'
import { en, type Key } from './en'
import { ko } from './ko'

export type { Key }
export const LANGUAGES = { en: 'English', ko: '한국어' } as const
export type Language = keyof typeof LANGUAGES

/** Every text with marks around it and half as long again: shows what isn't translated and what overflows. */
const pseudo = (text: string) => `[${text.replace(/[aeiou](?![^{]*})/g, '$&$&')}]`

/** What was chosen; null: as the browser says. */
export const chosen = signal<Language | null>(null)
const asked = new URLSearchParams(location.search).get('lang')

export const language = computed<Language>(
  () => chosen.value ?? (navigator.languages.map((one) => one.slice(0, 2)).find((one) => one in LANGUAGES) as Language) ?? 'en',
)

const catalogue = computed<Record<Key, string>>(() => (language.value === 'ko' ? ko : en))

/** A text in the chosen language, with {names} filled in. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  const text = catalogue.value[key].replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole))
  return asked === 'pseudo' ? pseudo(text) : text
}

/** A fraction as the language writes it: 1 is 100%. */
export function percent(value: number): string {
  return new Intl.NumberFormat(language.value, { style: 'percent', maximumFractionDigits: 0, useGrouping: false }).format(value)
}

/** Bytes as the language writes them. */
export function size(bytes: number): string {
  const [value, unit] = bytes >= 1e9 ? [bytes / 1e9, 'gigabyte'] : [bytes / 1e6, 'megabyte']
  return new Intl.NumberFormat(language.value, { style: 'unit', unit, maximumSignificantDigits: 2 }).format(value)
}

/** A moment as the language writes it. */
export function moment(seconds: number): string {
  return new Intl.DateTimeFormat(language.value, { dateStyle: 'medium', timeStyle: 'short' }).format(seconds * 1000)
}

effect(() => {
  document.documentElement.lang = language.value
})
