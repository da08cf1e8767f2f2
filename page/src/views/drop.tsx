import { useSignal } from '@preact/signals'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { takeAsMask } from '../state/actions'
import { image } from '../state/inputs'
import { ofFile, type Source } from '../state/source'
import { show, tell } from '../state/ui'
import { addControlNet, chooseImage } from './inputs'
import { masking } from './masking'
import { RecipeActions } from './recipes'

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
      if (!file.value) tell(t('notAPicture'), { bad: true })
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
  const url = useMemo(() => URL.createObjectURL(file), [file])
  const recipe = useSignal<(Source & { from: string }) | string | null>(null)
  useEffect(() => {
    dialog.current!.showModal()
    ofFile(file).then(
      (found) => (recipe.value = found),
      (error: Error) => (recipe.value = error.message),
    )
    return () => URL.revokeObjectURL(url)
  }, [])
  const use = (what: (file: File) => Promise<void>) => () => {
    dialog.current!.close()
    show('draw')
    void what(file)
  }
  const paint = async (one: File) => {
    await chooseImage(one)
    masking.value = image.value !== null
  }
  const found = recipe.value
  return (
    <dialog ref={dialog} class="ask" onClose={onDone} aria-label={t('dropTitle')}>
      <h2>{t('dropTitle')}</h2>
      <div class="row top">
        <div class="thumb">
          <img src={url} alt="" />
        </div>
        <p class="grow">{file.name}</p>
      </div>
      <div class="stack">
        <button type="button" onClick={use(chooseImage)}>
          {t('asStart')}
        </button>
        <button type="button" onClick={use(paint)}>
          {t('asMask')}
        </button>
        {image.value ? (
          <button type="button" onClick={use(takeAsMask)}>
            {t('asTheMask')}
          </button>
        ) : null}
        <button type="button" onClick={use(addControlNet)}>
          {t('asControl')}
        </button>
        <div role="status">
          {typeof found === 'string' ? <p class="faint">{found}</p> : null}
          {found !== null && typeof found === 'object' ? (
            <>
              <p>{t('recipeOf', { source: found.from })}</p>
              <p dir="auto" class="brief">
                {String(found.recipe.prompt ?? '') || t('noPrompt')}
              </p>
            </>
          ) : null}
        </div>
        {found !== null && typeof found === 'object' ? (
          <RecipeActions
            offer={{ title: String(found.recipe.prompt ?? '') || t('noPrompt'), load: async () => found }}
            done={() => dialog.current!.close()}
          />
        ) : null}
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
    </dialog>
  )
}
