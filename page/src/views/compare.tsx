import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { WHOLE, type Part } from '../zoom'

/** Two pictures in one place, with a border between them that follows the pointer, or a slider's keys. */
export function Compare(props: { before: string; after: string; width: number; height: number; place?: Part }) {
  const { before, after, width, height, place = WHOLE } = props
  const at = useSignal(50)
  const slider = useRef<HTMLInputElement>(null)
  useEffect(() => slider.current!.focus({ preventScroll: true }), []) // its keys move the border
  const [left, top, wide, high] = place.map((part) => `${100 * part}%`)
  const follow = (event: PointerEvent) => {
    if (event.type === 'pointermove' && !event.buttons) return
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect()
    at.value = Math.round(Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width)))
  }
  return (
    <div class="compare">
      <div class="room">
        <div
          class="frame"
          style={{ aspectRatio: `${width} / ${height}`, width: `min(100cqw, ${(100 * width) / height}cqh)` }}
          onPointerDown={follow}
          onPointerMove={follow}
        >
          <img src={after} alt={t('after')} draggable={false} />
          <div class="before" style={{ clipPath: `inset(0 ${100 - at.value}% 0 0)` }}>
            <img src={before} alt={t('before')} draggable={false} style={{ left, top, width: wide, height: high }} />
          </div>
          <div class="border" style={{ left: `${at.value}%` }} />
        </div>
      </div>
      <label class="row">
        {t('before')}
        <input
          type="range"
          min={0}
          max={100}
          aria-label={t('divide')}
          value={at.value}
          onInput={(event) => (at.value = Number(event.currentTarget.value))}
          ref={slider}
        />
        {t('after')}
      </label>
    </div>
  )
}
