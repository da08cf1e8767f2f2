import { signal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { t, type Key } from '../i18n'
import { generate } from '../state/actions'
import { cancelCurrent } from '../state/queue'
import { locked } from '../state/server'
import { opened, show } from '../state/ui'
import { masking } from './masking'

export const helping = signal(false)
/** The stage shows what was started from, as long as a key or a button is held. */
export const peeking = signal(false)

const LIST: [string, Key][] = [
  ['Ctrl+Enter', 'keyGenerate'],
  ['Esc Esc', 'keyCancel'],
  ['Ctrl+↑ Ctrl+↓', 'keyWeight'],
  ['o Alt+O', 'keyOriginal'],
  ['/', 'keySearch'],
  ['← →', 'keyViewer'],
  ['+ − 0 1', 'keyZoom'],
  ['c', 'keyCompare'],
  ['v', 'keyAside'],
  ['p', 'keyPin'],
  ['i', 'keyCopy'],
  ['Delete', 'keyDelete'],
  ['?', 'keyHelp'],
]

const typing = (target: EventTarget | null) =>
  target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || (target instanceof HTMLInputElement && target.type !== 'checkbox')

/** Keys that work anywhere in the page. */
export function watchKeys(): void {
  let escaped = 0
  addEventListener('keydown', (event) => {
    if (locked.value || event.isComposing) return
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      if (!masking.value && !opened.value) void generate()
    } else if (event.key === 'Escape') {
      if (document.querySelector('dialog[open]')) return
      if (event.timeStamp - escaped < 800) cancelCurrent()
      escaped = event.timeStamp
    } else if (event.code === 'KeyO' && (event.altKey || (!typing(event.target) && !event.ctrlKey && !event.metaKey))) {
      if (document.querySelector('dialog[open]')) return
      event.preventDefault()
      peeking.value = true
    } else if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) {
      return
    } else if (event.key === '?') {
      helping.value = true
    } else if (event.key === '/') {
      event.preventDefault()
      show('gallery')
      setTimeout(() => document.getElementById('search')?.focus(), 50)
    }
  })
  addEventListener('keyup', () => (peeking.value = false))
  addEventListener('blur', () => (peeking.value = false))
}

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => dialog.current!.showModal(), [])
  return (
    <dialog ref={dialog} class="ask" onClose={() => (helping.value = false)} aria-label={t('allKeys')}>
      <h2>{t('allKeys')}</h2>
      <dl>
        {LIST.map(([keys, what]) => (
          <div key={what}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{t(what)}</dd>
          </div>
        ))}
      </dl>
      <button type="button" onClick={() => dialog.current!.close()}>
        {t('close')}
      </button>
    </dialog>
  )
}
