import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { readRecipe } from '../state/actions'
import { image } from '../state/inputs'
import { show } from '../state/ui'
import { addControlNet, chooseImage } from './inputs'
import { masking } from './masking'

/** A picture dropped or pasted anywhere: what is it for? */
export function Drop() {
  const over = useSignal(false)
  const file = useSignal<File | null>(null)
  useEffect(() => {
    const pictureOf = (data: DataTransfer | null) => [...(data?.files ?? [])].find((one) => one.type.startsWith('image/')) ?? null
    const holdsFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false
    const dragover = (event: DragEvent) => {
      if (!holdsFiles(event)) return
      event.preventDefault()
      over.value = true
    }
    const dragleave = (event: DragEvent) => {
      if (!event.relatedTarget) over.value = false
    }
    const drop = (event: DragEvent) => {
      over.value = false
      if (!holdsFiles(event)) return
      event.preventDefault()
      file.value = pictureOf(event.dataTransfer)
    }
    const paste = (event: ClipboardEvent) => {
      const found = pictureOf(event.clipboardData)
      if (!found || masking.value) return
      event.preventDefault()
      file.value = found
    }
    addEventListener('dragover', dragover)
    addEventListener('dragleave', dragleave)
    addEventListener('drop', drop)
    addEventListener('paste', paste)
    return () => {
      removeEventListener('dragover', dragover)
      removeEventListener('dragleave', dragleave)
      removeEventListener('drop', drop)
      removeEventListener('paste', paste)
    }
  }, [])
  if (file.value) return <Ask file={file.value} onDone={() => (file.value = null)} />
  return over.value ? <div class="dropping">{t('dropHere')}</div> : null
}

function Ask({ file, onDone }: { file: File; onDone: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => dialog.current!.showModal(), [])
  const use = (what: (file: File) => Promise<void>) => () => {
    dialog.current!.close()
    show('draw')
    void what(file)
  }
  const start = async (one: File) => chooseImage(one)
  const paint = async (one: File) => {
    await chooseImage(one)
    masking.value = image.value !== null
  }
  return (
    <dialog ref={dialog} class="ask" onClose={onDone} aria-label={t('dropTitle')}>
      <h2>{t('dropTitle')}</h2>
      <p>{file.name}</p>
      <div class="stack">
        <button type="button" onClick={use(start)}>
          {t('asStart')}
        </button>
        <button type="button" onClick={use(paint)}>
          {t('asMask')}
        </button>
        <button type="button" onClick={use(addControlNet)}>
          {t('asControl')}
        </button>
        <button type="button" onClick={use(readRecipe)}>
          {t('asRecipe')}
        </button>
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
    </dialog>
  )
}
