import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { fileOf } from '../api'
import { percent, t } from '../i18n'
import { fitted, gestures, held, zoomed, type Place } from '../zoom'

interface Shown {
  id: string
  width: number
  height: number
  prompt: string
}

/** A picture that is moved and zoomed by wheel, fingers, keys and buttons. */
export function Sight({ picture, onSwipe }: { picture: Shown; onSwipe: (by: number) => void }) {
  const box = useRef<HTMLDivElement>(null)
  const place = useSignal<Place | null>(null)
  const size = () => ({ width: box.current!.clientWidth, height: box.current!.clientHeight })
  const whole = () => fitted(picture, size(), 4)
  const set = (next: Place) => (place.value = held(next, picture, size()))
  const zoom = (factor: number, x = size().width / 2, y = size().height / 2) =>
    set(zoomed(place.value ?? whole(), factor, x, y, whole().scale))
  const fit = () => (place.value = whole())
  /** One pixel of the picture a pixel of the screen. */
  const own = (x?: number, y?: number) => zoom(1 / devicePixelRatio / (place.value?.scale ?? 1), x, y)
  useEffect(() => {
    fit()
    const observer = new ResizeObserver(() => box.current && fit()) // it may call once more when the picture has gone
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
    <div class="seen">
      <div
        class="sight"
        ref={box}
        tabIndex={0}
        role="group"
        aria-label={t('keyZoom')}
        onKeyDown={(event) => {
          if (event.key === '+' || event.key === '=') zoom(1.25)
          else if (event.key === '-') zoom(0.8)
          else if (event.key === '0') fit()
          else if (event.key === '1') own()
          else return
          event.preventDefault()
          event.stopPropagation()
        }}
        onDblClick={(event) => {
          const rect = box.current!.getBoundingClientRect()
          if (now && Math.abs(now.scale - whole().scale) < 1e-6) own(event.clientX - rect.left, event.clientY - rect.top)
          else fit()
        }}
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
      <div class="row center zooms">
        <button type="button" aria-label={t('zoomOut')} onClick={() => zoom(0.8)}>
          −
        </button>
        <output aria-label={t('zoomNow')}>{now ? percent(now.scale * devicePixelRatio) : ''}</output>
        <button type="button" aria-label={t('zoomIn')} onClick={() => zoom(1.25)}>
          +
        </button>
        <button type="button" title="0" onClick={fit}>
          {t('zoomFit')}
        </button>
        <button type="button" title="1" onClick={() => own()}>
          1:1
        </button>
      </div>
    </div>
  )
}
