import type { Job } from '../api'
import { t } from '../i18n'
import { alive, cancel, cancelWaiting, dismiss, listed, live, watched } from '../state/queue'
import { ofJob } from '../state/source'
import { offered } from './recipes'

/** What waits, is drawn, or failed. */
export function Queue() {
  const rows = listed.value
  if (!rows.length) return null
  const waiting = live.value.filter((job) => job.state === 'queued').length
  return (
    <section class="queue" aria-label={t('queue')}>
      <h2>
        {t('queue')} {live.value.length ? <span class="badge">{live.value.length}</span> : null}
      </h2>
      <ul>
        {rows.map((job) => (
          <Row key={job.id} job={job} />
        ))}
      </ul>
      {waiting > 1 ? (
        <button type="button" onClick={() => void cancelWaiting()}>
          {t('cancelAll')}
        </button>
      ) : null}
    </section>
  )
}

function told(job: Job): string {
  if (job.state === 'queued') return t('queued', { n: (job.position ?? 0) + 1 })
  if (job.state === 'running') return t('running', { step: job.step, steps: job.steps })
  return job.state === 'failed' ? `${t('failed')}: ${job.error ?? ''}` : t(job.state)
}

function Row({ job }: { job: Job }) {
  const prompt = String(job.request.prompt ?? '') || t('noPrompt')
  const left = job.seconds * (1 - job.step / Math.max(job.steps, 1))
  return (
    <li class={job.state} aria-current={watched.value === job.id ? 'true' : undefined}>
      <button type="button" class="plain prompt" onClick={() => (watched.value = job.id)}>
        {prompt}
        {job.n > 1 ? <span class="badge">{t('badge', { n: job.images.length, all: job.n })}</span> : null}
      </button>
      <span class="state">
        {told(job)}
        {job.state === 'running' && left >= 2 ? `, ${t('secondsLeft', { n: Math.round(left) })}` : ''}
      </span>
      <button type="button" onClick={() => (offered.value = { title: prompt, load: async () => ofJob(job) })}>
        {t('info')}
      </button>
      {alive(job) ? (
        <button type="button" aria-label={`${t('cancel')}: ${prompt}`} onClick={() => void cancel(job.id)}>
          {t('cancel')}
        </button>
      ) : (
        <button type="button" aria-label={`${t('dismiss')}: ${prompt}`} onClick={() => dismiss(job.id)}>
          {t('dismiss')}
        </button>
      )}
    </li>
  )
}
