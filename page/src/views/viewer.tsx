import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { api, fileOf, type PictureInfo } from '../api'
import { moment, t } from '../i18n'
import { again, copy, enlarge, startFrom } from '../state/actions'
import { pictures, pin, readOn, remove } from '../state/gallery'
import { ofPicture } from '../state/source'
import { closePicture, openPicture, tellProblem } from '../state/ui'
import { fitted, gestures, held, zoomed, type Place } from '../zoom'
import { lazy } from './lazy'
import { aside, masking } from './masking'
import { Notice } from './notice'
import { RecipeActions } from './recipes'

const Compare = lazy(() => import('./compare').then((found) => found.Compare))

/** One picture, large, with what made it. */
export function Viewer({ id }: { id: string }) {
  const dialog = useRef<HTMLDialogElement>(null)
  const info = useSignal<PictureInfo | null>(null)
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
      (found) => current && (info.value = found),
      (error) => {
        if (!current) return
        closePicture()
        tellProblem(error)
      },
    )
    return () => void (current = false)
  }, [id, all[at]?.pinned])
  const compare = () => {
    if (!aside.value || aside.value === id) aside.value = id
    else comparing.value = !comparing.value
  }
  const now = info.value?.id === id ? info.value : null
  const listed = all[at] ?? now
  return (
    <dialog
      ref={dialog}
      class="viewer"
      aria-label={listed?.prompt || t('noPrompt')}
      onClose={closePicture}
      onKeyDown={(event) => {
        if (event.target instanceof HTMLInputElement && event.key !== 'c') return
        if (event.key === 'ArrowLeft') go(-1)
        else if (event.key === 'ArrowRight') go(1)
        else if (event.key === 'Delete') void remove(id)
        else if (event.key === 'c') compare()
        else if (event.key === 'i' && now) void copy(now)
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
        <button type="button" aria-pressed={comparing.value || aside.value === id} onClick={compare}>
          {aside.value && aside.value !== id ? t('compareNow') : t('compareWith')}
        </button>
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
      {listed ? (
        listed.gone ? (
          <p class="empty">{t('gone')}</p>
        ) : comparing.value && aside.value && aside.value !== id ? (
          <Compare key={id} before={aside.value} after={id} />
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

function Actions({ info }: { info: PictureInfo }) {
  return (
    <>
      <div class="row wrap">
        <button type="button" onClick={() => void again(info)}>
          {t('again')}
        </button>
        <RecipeActions offer={{ title: info.prompt || t('noPrompt'), load: () => ofPicture(info.id) }} />
      </div>
      {info.gone ? null : (
        <div class="row wrap">
          <button type="button" onClick={() => void startFrom(info)}>
            {t('asStart')}
          </button>
          <button type="button" onClick={() => void startFrom(info).then((there) => (masking.value = there))}>
            {t('asMask')}
          </button>
          <button type="button" title={t('enlargeHint')} onClick={() => void enlarge(info)}>
            {t('enlarge')}
          </button>
        </div>
      )}
      <div class="row wrap">
        <button type="button" aria-pressed={info.pinned} onClick={() => void pin(info)}>
          {info.pinned ? t('unpin') : t('pin')}
        </button>
        {info.gone ? null : (
          <a class="button" href={`${fileOf(info.id)}?download=true`} download={`${info.id}.png`}>
            {t('download')}
          </a>
        )}
        <button type="button" onClick={() => void copy(info)}>
          {t('copy')}
        </button>
        <button type="button" class="bad" onClick={() => void remove(info.id)}>
          {t('remove')}
        </button>
      </div>
    </>
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

function Sight({ picture, onSwipe }: { picture: { id: string; width: number; height: number; prompt: string }; onSwipe: (by: number) => void }) {
  const box = useRef<HTMLDivElement>(null)
  const place = useSignal<Place | null>(null)
  const size = () => ({ width: box.current!.clientWidth, height: box.current!.clientHeight })
  const whole = () => fitted(picture, size(), 4)
  const set = (next: Place) => (place.value = held(next, picture, size()))
  const zoom = (factor: number, x = size().width / 2, y = size().height / 2) =>
    set(zoomed(place.value ?? whole(), factor, x, y, whole().scale))
  useEffect(() => {
    place.value = whole()
    const observer = new ResizeObserver(() => box.current && (place.value = whole())) // it may call once more when the picture has gone
    observer.observe(box.current!)
    const end = gestures(box.current!, {
      move: (dx, dy) => place.value && set({ ...place.value, x: place.value.x + dx, y: place.value.y + dy }),
      zoom,
      drags: () => true,
      swipe: (by) => {
        if (place.value && place.value.scale <= whole().scale * 1.01) onSwipe(by)
      },
    })
    return () => {
      observer.disconnect()
      end()
    }
  }, [])
  const now = place.value
  return (
    <div
      class="sight"
      ref={box}
      tabIndex={0}
      role="group"
      aria-label={t('keyZoom')}
      onKeyDown={(event) => {
        if (event.key === '+' || event.key === '=') zoom(1.25)
        else if (event.key === '-') zoom(0.8)
        else if (event.key === '0') place.value = whole()
        else if (event.key === '1') zoom(1 / (place.value?.scale ?? 1))
        else return
        event.preventDefault()
        event.stopPropagation()
      }}
      onDblClick={() => (now && now.scale !== 1 ? zoom(1 / now.scale) : (place.value = whole()))}
    >
      <img
        src={fileOf(picture.id)}
        alt={picture.prompt || t('noPrompt')}
        width={picture.width}
        height={picture.height}
        draggable={false}
        style={now ? { transform: `translate(${now.x}px, ${now.y}px) scale(${now.scale})` } : {}}
        class={now && now.scale > 3 ? 'sharp' : ''}
      />
    </div>
  )
}
