import { useComputed, useSignal } from '@preact/signals'
import { useRef } from 'preact/hooks'
import { t } from '../i18n'
import { change, draft } from '../state/draft'
import { weighed } from '../state/recipe'
import { model } from '../state/server'
import { completing, type Completing } from '../state/words'
import { Explain } from './explain'
import { described, Fault } from './fields'

/** A box for a prompt: weights by keys, the rest of words that the model knows, what it reads of all that. */
export function Prompt({ name, label, hint, rows }: { name: 'prompt' | 'negative'; label: string; hint: string; rows: number }) {
  const box = useRef<HTMLTextAreaElement>(null)
  const caret = useSignal(-1) // where it stands; -1: elsewhere
  const chosen = useSignal(-1)
  const offered = useComputed(() => completing(draft.value[name], caret.value, model.value?.words ?? []))
  const list = `words-${name}`
  const moved = () => {
    const element = box.current!
    const at = element.selectionStart === element.selectionEnd ? element.selectionStart : -1
    if (at === caret.value) return
    caret.value = at
    chosen.value = -1
  }
  const accept = (found: Completing, at: number) => {
    typed(box.current!, found.start, found.end, found.options[at]!)
    moved()
    box.current!.focus()
  }
  const keys = (event: KeyboardEvent) => {
    const found = offered.value
    if (event.ctrlKey || event.metaKey) {
      if (event.key !== 'ArrowUp' && event.key !== 'ArrowDown') return
      weigh(box.current!, event.key === 'ArrowUp' ? 0.1 : -0.1)
    } else if (!found || event.isComposing) {
      return
    } else if (event.key === 'ArrowDown' || (event.key === 'ArrowUp' && chosen.value >= 0)) {
      chosen.value = Math.min(found.options.length - 1, chosen.value + (event.key === 'ArrowDown' ? 1 : -1))
    } else if (event.key === 'Enter' && chosen.value >= 0) {
      accept(found, chosen.value)
    } else if (event.key === 'Escape') {
      caret.value = -1
      event.stopPropagation()
    } else {
      return
    }
    event.preventDefault()
  }
  const found = offered.value
  return (
    <div class="field">
      <label for={`field-${name}`}>{label}</label>
      <textarea
        ref={box}
        id={`field-${name}`}
        rows={rows}
        dir="auto"
        spellcheck={false}
        autocapitalize="off"
        autocomplete="off"
        placeholder={hint}
        value={draft.value[name]}
        aria-autocomplete={model.value?.words?.length ? 'list' : undefined}
        aria-controls={found ? list : undefined}
        aria-activedescendant={found && chosen.value >= 0 ? `${list}-${chosen.value}` : undefined}
        onInput={(event) => {
          change({ [name]: event.currentTarget.value })
          moved()
        }}
        onKeyDown={keys}
        onKeyUp={(event) => (event.key.startsWith('Arrow') || event.key === 'Home' || event.key === 'End') && moved()}
        onClick={moved}
        onBlur={() => (caret.value = -1)}
        {...described(name)}
      />
      {model.value?.words?.length && draft.value[name] ? (
        <div class="completions">
          {found ? (
            <ul id={list} role="listbox" aria-label={t('wordsKnown')}>
              {found.options.map((word, i) => (
                <li
                  key={word}
                  id={`${list}-${i}`}
                  role="option"
                  aria-selected={i === chosen.value}
                  class="chip"
                  onPointerDown={(event) => event.preventDefault()}
                  onClick={() => accept(found, i)}
                >
                  {word}
                </li>
              ))}
            </ul>
          ) : null}
        </div>
      ) : null}
      <Fault name={name} />
      {name === 'prompt' ? <Explain /> : null}
    </div>
  )
}

/** Change a part of a text as if it were typed, so that the browser's own undo takes it back. */
function typed(box: HTMLTextAreaElement, start: number, end: number, text: string): void {
  box.focus()
  box.setSelectionRange(start, end)
  document.execCommand('insertText', false, text)
}

/** Change the weight of the word at the cursor, or of what is selected. */
function weigh(box: HTMLTextAreaElement, by: number): void {
  const old = box.value
  const { text, start, end } = weighed(old, box.selectionStart, box.selectionEnd, by)
  if (text === old) return
  let same = 0
  while (same < old.length && old[same] === text[same]) same++
  let tail = 0 // what is the same at the end: undoing selects what was typed, and that should be the word alone
  while (tail < Math.min(old.length, text.length) - same && old.at(-1 - tail) === text.at(-1 - tail)) tail++
  typed(box, same, old.length - tail, text.slice(same, text.length - tail))
  box.setSelectionRange(start, end)
}
