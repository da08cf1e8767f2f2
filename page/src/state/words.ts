/** What is put into a prompt for somebody: tags of LoRAs, words that call them, the rest of a word half typed. */

/** The prompt with a LoRA in it at a weight; one that is there already gets the weight. */
export function withLora(prompt: string, name: string, weight: string): string {
  const tag = `<lora:${name}:${weight.trim() || '1'}>`
  const start = `<lora:${name}`
  for (let at = prompt.indexOf(start); at >= 0; at = prompt.indexOf(start, at + 1)) {
    const end = prompt.slice(at + start.length).match(/^(?::[^<>]*)?>/)
    if (end) return prompt.slice(0, at) + tag + prompt.slice(at + start.length + end[0].length)
  }
  return withWord(prompt, tag)
}

/** The prompt without a LoRA. */
export function withoutLora(prompt: string, name: string): string {
  return loras(prompt).includes(name) ? withLora(prompt, name, '\0').replace(/ ?<lora:[^<>]*:\0>/, '') : prompt
}

/** The prompt with words at its end, unless it has them. */
export function withWord(prompt: string, word: string): string {
  if (prompt.toLowerCase().includes(word.toLowerCase())) return prompt
  const plain = prompt.trimEnd()
  if (!plain) return word
  return word.startsWith('<') || /[,>]$/.test(plain) ? `${plain} ${word}` : `${plain}, ${word}`
}

/** A prompt in a style, as A1111 has them: where the style says {prompt} it goes around, else it comes behind. */
export function styled(prompt: string, style: string): string {
  if (!style.trim()) return prompt
  if (style.includes('{prompt}')) return style.replaceAll('{prompt}', () => prompt.trim())
  return prompt.trim() ? `${prompt.trim()}, ${style.trim()}` : style.trim()
}

/** The names of the LoRAs that a prompt asks for. */
export function loras(prompt: string): string[] {
  return [...prompt.matchAll(/<lora:([^:<>]+)(?::[^<>]*)?>/g)].map((found) => found[1]!)
}

export interface Completing {
  start: number
  end: number
  options: string[]
}

const MOST = 8

/** What the word that ends at the caret may become; null where nothing is to be offered. */
export function completing(text: string, caret: number, words: readonly string[]): Completing | null {
  const typed = text.slice(0, caret).match(/[\p{L}\p{N}][\p{L}\p{N}'_-]*$/u)?.[0]
  if (!typed || /^[\p{L}\p{N}]/u.test(text.slice(caret))) return null
  const sought = typed.toLowerCase()
  const options = words.filter((word) => word.toLowerCase().startsWith(sought) && word.toLowerCase() !== sought).slice(0, MOST)
  return options.length ? { start: caret - typed.length, end: caret, options } : null
}
