import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { dragged, GRID, laidOut, type Border } from '../state/border'
import { change, draft } from '../state/draft'
import type { Input } from '../state/inputs'
import { server } from '../state/server'
import type { Place } from '../zoom'
import { NumberField } from './fields'

const NAMES = ['left', 'top', 'right', 'bottom'] as const
/** Handles: where they are (-1, 0, 1 of each axis). */
const EDGES = [
  [-1, 0],
  [0, -1],
  [1, 0],
  [0, 1],
] as const
const CORNERS = [
  [-1, -1],
  [1, -1],
  [1, 1],
  [-1, 1],
] as const
const ARROWS: Record<string, readonly [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

/** A picture's borders, dragged outwards to where it is going to be extended. */
export function Outpaint({ picture }: { picture: Input }) {
  const box = useRef<HTMLDivElement>(null)
  const size = useSignal({ width: 0, height: 0 })
  /** Where a drag began: the scale stays until its end, so that the handle stays under the pointer. */
  const held = useSignal<{ place: Place; from: Border; x: number; y: number } | null>(null)
  const border = NAMES.map((name) => Math.max(0, Number(draft.value[name]) || 0)) as unknown as Border
  const limits = server.value?.limits ?? { side: 8192, pixels: 2 ** 24 }
  const set = (next: Border) => change(Object.fromEntries(NAMES.map((name, i) => [name, next[i] ? String(next[i]) : ''])))
  useEffect(() => {
    const observer = new ResizeObserver(() => box.current && (size.value = { width: box.current.clientWidth, height: box.current.clientHeight }))
    observer.observe(box.current!)
    return () => observer.disconnect()
  }, [])
  const [left, top, right, bottom] = border
  const place = held.value?.place ?? laidOut(picture, border, size.value)
  const { scale } = place
  const width = picture.width + left + right
  const height = picture.height + top + bottom
  const drag = (sides: readonly [number, number]) => ({
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return
      ;(event.currentTarget as HTMLElement).setPointerCapture(event.pointerId)
      held.value = { place, from: border, x: event.clientX, y: event.clientY }
    },
    onPointerMove: (event: PointerEvent) => {
      const now = held.value
      if (!now) return
      const by = [(sides[0] * (event.clientX - now.x)) / scale, (sides[1] * (event.clientY - now.y)) / scale] as const
      set(dragged(now.from, sides, by, picture, limits))
    },
    onPointerUp: () => (held.value = null),
    onPointerCancel: () => (held.value = null),
    style: {
      left: `${place.x + scale * (sides[0] < 0 ? -left : sides[0] > 0 ? picture.width + right : (picture.width + right - left) / 2)}px`,
      top: `${place.y + scale * (sides[1] < 0 ? -top : sides[1] > 0 ? picture.height + bottom : (picture.height + bottom - top) / 2)}px`,
    },
  })
  const step = (sides: readonly [number, number]) => (event: KeyboardEvent) => {
    const arrow = ARROWS[event.key]
    const outwards = event.key === 'Home' ? -Infinity : arrow ? sides[0] * arrow[0] + sides[1] * arrow[1] : 0
    if (!outwards) return
    event.preventDefault()
    const by = outwards * GRID * (event.shiftKey ? 8 : 1)
    set(dragged(border, sides, [by, by], picture, limits))
  }
  return (
    <>
      <div class="extend" ref={box}>
        <div
          class="outer"
          style={{ left: `${place.x - left * scale}px`, top: `${place.y - top * scale}px`, width: `${width * scale}px`, height: `${height * scale}px` }}
        />
        <img
          src={picture.url}
          alt=""
          draggable={false}
          style={{ left: `${place.x}px`, top: `${place.y}px`, width: `${picture.width * scale}px`, height: `${picture.height * scale}px` }}
        />
        {CORNERS.map((sides) => (
          <div key={sides.join()} class="handle corner" aria-hidden="true" {...drag(sides)} />
        ))}
        {EDGES.map((sides, i) => (
          <div
            key={sides.join()}
            class="handle"
            role="slider"
            tabIndex={0}
            aria-label={`${t('extend')}: ${t(NAMES[i]!)}`}
            aria-orientation={sides[0] ? 'horizontal' : 'vertical'}
            aria-valuemin={0}
            aria-valuemax={limits.side}
            aria-valuenow={border[i]!}
            onKeyDown={step(sides)}
            {...drag(sides)}
          >
            <span>{border[i] ? `+${border[i]}` : ''}</span>
          </div>
        ))}
      </div>
      <p class="faint" role="status">
        {t('becomes', { width, height })}
      </p>
      <div class="grid">
        {NAMES.map((name) => (
          <NumberField key={name} name={name} label={t(name)} placeholder="0" min={0} step={GRID} />
        ))}
      </div>
    </>
  )
}
