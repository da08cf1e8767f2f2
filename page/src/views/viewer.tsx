import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { api, fileOf, type Job, type PictureInfo } from '../api'
import { moment, t } from '../i18n'
import { copyRecipe } from '../state/files'
import { pictures, pin, readOn, remove } from '../state/gallery'
import { originalOf } from '../state/original'
import { closePicture, openPicture, tellProblem } from '../state/ui'
import { lazy } from './lazy'
import { aside } from './masking'
import { Notice } from './notice'
import { Actions } from './picture_actions'
import { Sight } from './sight'

const Compare = lazy(() => import('./compare').then((found) => found.Compare))

/** One picture, large, with what made it. */
export function Viewer({ id }: { id: string }) {
  const dialog = useRef<HTMLDialogElement>(null)
  const info = useSignal<PictureInfo | null>(null)
  const job = useSignal<Job | null>(null)
  const comparing = useSignal(false)
  const all = pictures.value
  const at = all.findIndex((one) => one.id === id)
  const go = (by: number) => {
    const other = at < 0 ? undefined : all[at + by]
    if (other) openPicture(other.id)
    if (by > 0 && at + by >= all.length - 3) void readOn()
  }
  useEffect(() => dialog.current!.showModal(), [])
  useEffect(() => {
    let current = true
    api.picture(id).then(
      (found) => {
        if (!current) return
        info.value = found
        if (job.value?.id !== found.job) {
          api.job(found.job).then(
            (asked) => (job.value = asked),
            () => (job.value = null),
          )
        }
      },
      (error) => {
        if (!current) return
        closePicture()
        tellProblem(error)
      },
    )
    return () => void (current = false)
  }, [id, all[at]?.pinned])
  const setAside = () => {
    aside.value = aside.value === id ? null : id
    comparing.value = false
  }
  const compare = () => {
    comparing.value = !comparing.value
  }
  const now = info.value?.id === id ? info.value : null
  const listed = all[at] ?? now
  const original = now && job.value?.id === now.job ? originalOf(job.value, now.width, now.height) : null
  const other = aside.value !== null && aside.value !== id
  return (
    <dialog
      ref={dialog}
      class="viewer"
      aria-label={listed?.prompt || t('noPrompt')}
      onClose={closePicture}
      onKeyDown={(event) => {
        if (event.target instanceof HTMLInputElement && !'cvp'.includes(event.key)) return
        if (event.key === 'ArrowLeft') go(-1)
        else if (event.key === 'ArrowRight') go(1)
        else if (event.key === 'Delete') void remove(id)
        else if (event.key === 'c') compare()
        else if (event.key === 'v') setAside()
        else if (event.key === 'p' && listed) void pin(listed)
        else if (event.key === 'i' && now) void copyRecipe(now)
        else return
        event.preventDefault()
      }}
    >
      <div class="bar">
        <button type="button" disabled={at <= 0} onClick={() => go(-1)} aria-label={t('previous')}>
          ‹
        </button>
        <button type="button" disabled={at < 0 || at >= all.length - 1} onClick={() => go(1)} aria-label={t('next')}>
          ›
        </button>
        <span class="grow" />
        {other || original ? (
          <button type="button" class="late" title="c" aria-pressed={comparing.value} onClick={compare}>
            {other ? t('compareNow') : t('compareOriginal')}
          </button>
        ) : null}
        <button type="button" class="late" title="v" aria-pressed={aside.value === id} onClick={setAside}>
          {t('compareWith')}
        </button>
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
      {listed ? (
        listed.gone ? (
          <p class="empty">{t('gone')}</p>
        ) : comparing.value && aside.value && other ? (
          <Compare key={id} before={fileOf(aside.value)} after={fileOf(id)} width={listed.width} height={listed.height} />
        ) : comparing.value && original ? (
          <Compare key={id} before={original.url} after={fileOf(id)} width={listed.width} height={listed.height} place={original.place} />
        ) : (
          <Sight key={id} picture={listed} onSwipe={go} />
        )
      ) : (
        <div class="sight" />
      )}
      <div class="about">
        {now ? <Actions info={now} /> : null}
        {now ? <Recipe info={now} /> : null}
      </div>
      <Notice />
    </dialog>
  )
}

function Recipe({ info }: { info: PictureInfo }) {
  const { recipe } = info
  const rows: [string, unknown][] = [
    [t('prompt'), recipe.prompt],
    [t('negative'), recipe.negative_prompt],
    [t('width'), info.width],
    [t('height'), info.height],
    [t('seed'), info.seed],
    [t('steps'), recipe.steps],
    [t('guidance'), recipe.guidance_scale],
    [t('sampler'), recipe.sampler],
    [t('schedule'), recipe.schedule],
    [t('strength'), recipe.strength],
    [t('model'), recipe.model],
  ]
  return (
    <>
      <h2>{t('info')}</h2>
      <dl>
        {rows
          .filter(([, value]) => value !== undefined && value !== null && value !== '')
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd dir="auto">{typeof value === 'object' ? JSON.stringify(value) : String(value)}</dd>
            </div>
          ))}
      </dl>
      <p>
        <time dateTime={new Date(info.created * 1000).toISOString()}>{moment(info.created)}</time>
      </p>
      {info.warnings.map((text) => (
        <p key={text} class="warning">
          {text}
        </p>
      ))}
    </>
  )
}
