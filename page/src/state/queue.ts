import { computed, signal } from '@preact/signals'
import { api, Problem, type Job } from '../api'
import { t } from '../i18n'
import { said, tellProblem } from './ui'

/** Jobs that live, and those that ended while this page was open. */
export const jobs = signal<ReadonlyMap<string, Job>>(new Map())
/** How the pictures of jobs look so far: job -> data address. */
export const previews = signal<ReadonlyMap<string, string>>(new Map())
/** The job that the stage shows. */
export const watched = signal<string | null>(null)

export const alive = (job: Job) => job.state === 'queued' || job.state === 'running'
export const newestFirst = computed(() => [...jobs.value.values()].sort((a, b) => b.created - a.created))
export const live = computed(() => newestFirst.value.filter(alive))
/** What the queue lists: all that lives, and what failed. */
export const listed = computed(() => newestFirst.value.filter((job) => alive(job) || job.state === 'failed'))

type Listener = (job: Job) => void
const whenEnded: Listener[] = []
const whenGrown: Listener[] = []
/** Calls when a job has ended. */
export const onEnd = (call: Listener) => whenEnded.push(call)
/** Calls when a job has more pictures than before. */
export const onPicture = (call: Listener) => whenGrown.push(call)

const quarter = (job: Job) => Math.floor((4 * job.step) / Math.max(job.steps, 1))

/** Take a job's present state. */
export function put(job: Job): void {
  const before = jobs.value.get(job.id)
  if (before && !alive(before)) return // an event that was on its way when the job was cancelled here
  const next = new Map(jobs.value)
  next.set(job.id, job)
  jobs.value = next
  if (job.images.length > (before?.images.length ?? 0)) for (const call of whenGrown) call(job)
  if (alive(job)) {
    if (before && job.state === 'running' && quarter(job) > quarter(before) && quarter(job) < 4) {
      said.value = t('saidPart', { n: quarter(job) * 25 })
    }
    if (job.state === 'running' && !live.value.some((one) => one.id === watched.value)) watched.value = job.id
    return
  }
  const left = new Map(previews.value)
  left.delete(job.id)
  previews.value = left
  if (before) {
    said.value =
      job.state === 'finished' ? t('saidFinished') : job.state === 'failed' ? t('saidFailed', { why: job.error ?? '' }) : t('saidCancelled')
  }
  for (const call of whenEnded) call(job)
}

/** Which jobs live, said at the start of a connection: those that we thought lived and don't are asked after. */
export function reconcile(ids: readonly string[]): void {
  for (const job of live.value) {
    if (ids.includes(job.id)) continue
    api.job(job.id).then(put, (error: unknown) => {
      if (error instanceof Problem && error.status === 404) dismiss(job.id)
    })
  }
}

/** A picture of a job was deleted, or came back. */
export function changed(id: string): void {
  if (!jobs.value.has(id)) return
  api.job(id).then(
    (job) => (jobs.value = new Map(jobs.value).set(id, job)),
    () => undefined,
  )
}

export function preview(job: string, jpeg: string): void {
  const known = jobs.value.get(job)
  if (!known || !alive(known)) return
  previews.value = new Map(previews.value).set(job, `data:image/jpeg;base64,${jpeg}`)
}

export async function cancel(id: string): Promise<void> {
  try {
    put(await api.cancel(id))
  } catch (error) {
    tellProblem(error)
  }
}

/** End what is being drawn: the job that the stage shows, else the oldest that runs. */
export function cancelCurrent(): void {
  const current = live.value.find((job) => job.id === watched.value) ?? live.value.at(-1)
  if (current) void cancel(current.id)
}

export async function cancelWaiting(): Promise<void> {
  try {
    await api.cancelQueued()
    reconcile([])
  } catch (error) {
    tellProblem(error)
  }
}

export function dismiss(id: string): void {
  const next = new Map(jobs.value)
  next.delete(id)
  jobs.value = next
}
