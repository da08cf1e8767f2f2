import { useEffect, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { question } from '../state/ui'

/** A question that something waits for. */
export function Confirm() {
  const asked = question.value
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    if (asked) dialog.current!.showModal()
  }, [asked])
  if (!asked) return null
  const answer = (yes: boolean) => () => {
    question.value = null
    asked.answer(yes)
  }
  return (
    <dialog ref={dialog} class="ask" onClose={answer(false)} aria-label={asked.yes}>
      <p>{asked.text}</p>
      <div class="row">
        <button type="button" class="main grow" onClick={answer(true)}>
          {asked.yes}
        </button>
        <button type="button" onClick={answer(false)}>
          {t('cancel')}
        </button>
      </div>
    </dialog>
  )
}
