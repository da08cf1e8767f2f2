import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { api, fileOf, type Job } from '../api'
import { t } from '../i18n'
import { pictures } from '../state/gallery'
import { image } from '../state/inputs'
import { originalOf } from '../state/original'
import { alive, cancel, jobs, previews, watched } from '../state/queue'
import { peeking } from './keys'
import { lazy } from './lazy'
import { Results } from './results'

const Compare = lazy(() => import('./compare').then((found) => found.Compare))

/** The job of the newest picture, whose results are shown again when the page was opened anew. */
function useEarlier(id: string | null): Job | undefined {
  const found = useSignal<Job | null>(null)
  const there = pictures.value.filter((one) => one.job === id).length // one was deleted, or came back
  useEffect(() => {
    let current = true
    if (id !== null) api.job(id).then((job) => current && (found.value = job), () => undefined)
    return () => void (current = false)
  }, [id, there])
  return found.value?.id === id ? (found.value ?? undefined) : undefined
}

/** The picture that is being drawn, or was last. */
export function Stage() {
  const comparing = useSignal(false)
  const latest = pictures.value[0]
  const earlier = useEarlier(watched.value ? null : (latest?.job ?? null))
  const job = watched.value ? jobs.value.get(watched.value) : earlier
  const chosen = useSignal<string | null>(null)
  const drawing = job && alive(job)
  const done = job?.images ?? []
  const shown = done.find((one) => one.id === chosen.value) ?? done.at(drawing ? -1 : 0)
  const preview = job ? previews.value.get(job.id) : undefined
  const prompt = String(job?.request.prompt ?? '') || t('noPrompt')
  const width = job?.request.width
  const height = job?.request.height
  const began = job && shown ? originalOf(job, shown.width, shown.height) : null
  const original = began?.url ?? image.value?.url
  const compared = comparing.value && began !== null && shown !== undefined && !drawing
  const ratio = typeof width === 'number' && typeof height === 'number' ? `${width} / ${height}` : undefined
  return (
    <section class="stage" aria-label={t('prompt')}>
      <div class="canvas">
        {peeking.value && original ? (
          <img src={original} alt={t('picture')} />
        ) : compared ? (
          <Compare key={shown.id} before={began.url} after={fileOf(shown.id)} width={shown.width} height={shown.height} place={began.place} />
        ) : drawing && preview && shown?.id !== chosen.value ? (
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
      {original ? (
        <button
          type="button"
          title="o"
          onPointerDown={() => (peeking.value = true)}
          onPointerUp={() => (peeking.value = false)}
          onPointerLeave={() => (peeking.value = false)}
          onKeyDown={(event) => event.key === ' ' && (peeking.value = true)}
          onKeyUp={() => (peeking.value = false)}
        >
          {t('showOriginal')}
        </button>
      ) : null}
      {shown ? (
        <Results
          results={done}
          shown={shown}
          prompt={String(job?.request.prompt ?? '')}
          comparing={compared}
          onCompare={began && !drawing ? () => (comparing.value = !comparing.value) : null}
          onChoose={(id) => (chosen.value = id)}
        />
      ) : null}
      {shown?.warnings.map((text) => (
        <p key={text} class="warning">
          {text}
        </p>
      ))}
    </section>
  )
}
