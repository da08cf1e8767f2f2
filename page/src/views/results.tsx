import { thumbOf, type Job } from '../api'
import { t } from '../i18n'
import { startFrom } from '../state/actions'
import { pictures, pin } from '../state/gallery'
import { openPicture } from '../state/ui'
import { masking } from './masking'

type Result = Job['images'][number]

/** What a job has drawn, in a strip: one of them is shown, and can be compared, kept, and gone on with. */
export function Results(props: {
  results: Result[]
  shown: Result
  prompt: string
  comparing: boolean
  onCompare: (() => void) | null
  onChoose: (id: string) => void
}) {
  const { results, shown, prompt, comparing, onCompare, onChoose } = props
  const row = pictures.value.find((one) => one.id === shown.id)
  const go = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    const next = by && results[results.findIndex((one) => one.id === shown.id) + by]
    if (!next) return
    event.preventDefault()
    onChoose(next.id)
    const list = (event.currentTarget as HTMLElement).closest('ul')
    requestAnimationFrame(() => list?.querySelector<HTMLElement>('[aria-pressed="true"]')?.focus())
  }
  return (
    <>
      {results.length > 1 ? (
        <ul class="strip" aria-label={t('results')}>
          {results.map((one) => {
            const kept = pictures.value.find((known) => known.id === one.id)?.pinned
            return (
              <li key={one.id}>
                <button
                  type="button"
                  aria-pressed={one.id === shown.id}
                  aria-label={`${t('seed')} ${one.seed}${kept ? `, ${t('kept')}` : ''}`}
                  onClick={() => onChoose(one.id)}
                  onDblClick={() => openPicture(one.id)}
                  onKeyDown={go}
                >
                  <img src={thumbOf(one.id)} alt="" loading="lazy" />
                  {kept ? <span class="pinned" aria-hidden="true" /> : null}
                </button>
              </li>
            )
          })}
        </ul>
      ) : null}
      <div class="row wrap center">
        {onCompare ? (
          <button type="button" aria-pressed={comparing} onClick={onCompare}>
            {t('compareOriginal')}
          </button>
        ) : null}
        {row ? (
          <button type="button" aria-pressed={row.pinned} onClick={() => void pin(row)}>
            {row.pinned ? t('kept') : t('keep')}
          </button>
        ) : null}
        <button type="button" onClick={() => void startFrom({ id: shown.id, prompt })}>
          {t('asStart')}
        </button>
        <button type="button" onClick={() => void startFrom({ id: shown.id, prompt }).then((there) => (masking.value = there))}>
          {t('asMask')}
        </button>
      </div>
    </>
  )
}
