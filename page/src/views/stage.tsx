import { useSignal } from '@preact/signals'
import { fileOf, thumbOf } from '../api'
import { t } from '../i18n'
import { pictures } from '../state/gallery'
import { image } from '../state/inputs'
import { alive, cancel, jobs, previews, watched } from '../state/queue'
import { openPicture } from '../state/ui'

/** The picture that is being drawn, or was last. */
export function Stage() {
  const original = useSignal(false)
  const job = watched.value ? jobs.value.get(watched.value) : undefined
  const chosen = useSignal<string | null>(null)
  const drawing = job && alive(job)
  const done = job?.images ?? []
  const shown = done.find((one) => one.id === chosen.value) ?? done.at(drawing ? -1 : 0)
  const preview = job ? previews.value.get(job.id) : undefined
  const latest = pictures.value[0]
  const prompt = String(job?.request.prompt ?? '') || t('noPrompt')
  const width = job?.request.width
  const height = job?.request.height
  const ratio = typeof width === 'number' && typeof height === 'number' ? `${width} / ${height}` : undefined
  return (
    <section class="stage" aria-label={t('prompt')}>
      <div class="canvas">
        {original.value && image.value ? (
          <img src={image.value.url} alt={t('picture')} />
        ) : drawing && preview ? (
          <img class="preview" src={preview} alt={prompt} style={ratio ? { aspectRatio: ratio } : {}} />
        ) : shown ? (
          <a href={`#picture/${shown.id}`}>
            <img src={fileOf(shown.id)} alt={prompt} width={shown.width} height={shown.height} />
          </a>
        ) : drawing ? (
          <div class="waiting" style={ratio ? { aspectRatio: ratio } : {}} />
        ) : job?.state === 'failed' ? (
          <p class="fault">{job.error}</p>
        ) : latest ? (
          <a href={`#picture/${latest.id}`}>
            <img src={fileOf(latest.id)} alt={latest.prompt || t('noPrompt')} width={latest.width} height={latest.height} />
          </a>
        ) : (
          <p class="empty">{t('nothingYet')}</p>
        )}
      </div>
      {drawing ? (
        <div class="row progress">
          <progress max={job.steps} value={job.step} aria-label={prompt} />
          <button type="button" onClick={() => void cancel(job.id)}>
            {t('cancel')}
          </button>
        </div>
      ) : null}
      {shown && image.value && !drawing ? (
        <button
          type="button"
          onPointerDown={() => (original.value = true)}
          onPointerUp={() => (original.value = false)}
          onPointerLeave={() => (original.value = false)}
          onKeyDown={(event) => event.key === ' ' && (original.value = true)}
          onKeyUp={() => (original.value = false)}
        >
          {t('showOriginal')}
        </button>
      ) : null}
      {job && job.n > 1 && done.length ? (
        <ul class="strip">
          {done.map((one) => (
            <li key={one.id}>
              <button
                type="button"
                aria-pressed={one.id === shown?.id}
                aria-label={`${t('seed')} ${one.seed}`}
                onClick={() => (chosen.value = one.id)}
                onDblClick={() => openPicture(one.id)}
              >
                <img src={thumbOf(one.id)} alt="" loading="lazy" />
              </button>
            </li>
          ))}
        </ul>
      ) : null}
      {shown?.warnings.map((text) => (
        <p key={text} class="warning">
          {text}
        </p>
      ))}
    </section>
  )
}
