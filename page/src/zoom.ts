/** Pan and zoom of a box by wheel, fingers and keys: the viewer's and the mask editor's. */

export interface Place {
  scale: number // screen pixels a picture pixel, 1: the picture's own size
  x: number // of the picture's left upper corner, in screen pixels
  y: number
}

export interface Size {
  width: number
  height: number
}

export const MOST = 32

/** A part of a picture: left, top, width, height, as fractions of it. */
export type Part = [number, number, number, number]
export const WHOLE: Part = [0, 0, 1, 1]

/** Where a picture lies in one of `width` x `height` that it was extended to, by (left, top, right, bottom) pixels. */
export function placed(width: number, height: number, border: unknown): Part {
  if (!Array.isArray(border) || border.length !== 4) return WHOLE
  const [left, top, right, bottom] = border.map(Number) as Part
  return [left / width, top / height, (width - left - right) / width, (height - top - bottom) / height]
}

/** The whole picture, in the middle, never larger than `largest` times its size. */
export function fitted(picture: Size, box: Size, largest = 1): Place {
  const scale = Math.min(largest, box.width / picture.width, box.height / picture.height) || 1
  return { scale, x: (box.width - picture.width * scale) / 2, y: (box.height - picture.height * scale) / 2 }
}

/** Larger or smaller, with the point (x, y) of the box kept where it is. */
export function zoomed(place: Place, factor: number, x: number, y: number, least: number): Place {
  const scale = Math.max(Math.min(least, 1), Math.min(MOST, place.scale * factor))
  const by = scale / place.scale
  return { scale, x: x - (x - place.x) * by, y: y - (y - place.y) * by }
}

/** Keep a part of the picture in sight; a picture smaller than the box stays in the middle. */
export function held(place: Place, picture: Size, box: Size): Place {
  const one = (at: number, size: number, room: number) =>
    size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, at))
  return {
    scale: place.scale,
    x: one(place.x, picture.width * place.scale, box.width),
    y: one(place.y, picture.height * place.scale, box.height),
  }
}

/** Fingers, wheel and drags of an element. Tells moves (in its pixels) and zooms about a point; returns its end. */
export function gestures(
  element: HTMLElement,
  on: { move: (dx: number, dy: number) => void; zoom: (factor: number, x: number, y: number) => void; drags: (event: PointerEvent) => boolean; swipe?: (direction: number) => void },
): () => void {
  const held = new Map<number, { x: number; y: number; startX: number; startY: number }>()
  const at = (event: { clientX: number; clientY: number }) => {
    const box = element.getBoundingClientRect()
    return { x: event.clientX - box.left, y: event.clientY - box.top }
  }
  const down = (event: PointerEvent) => {
    const point = at(event)
    held.set(event.pointerId, { ...point, startX: point.x, startY: point.y })
    element.setPointerCapture(event.pointerId)
  }
  const move = (event: PointerEvent) => {
    const before = held.get(event.pointerId)
    if (!before) return
    const now = at(event)
    const others = [...held].filter(([id]) => id !== event.pointerId).map(([, point]) => point)
    const other = others[0]
    if (other) {
      const old = Math.hypot(before.x - other.x, before.y - other.y)
      const fresh = Math.hypot(now.x - other.x, now.y - other.y)
      if (old > 0) on.zoom(fresh / old, (now.x + other.x) / 2, (now.y + other.y) / 2)
      on.move((now.x - before.x) / 2, (now.y - before.y) / 2)
    } else if (on.drags(event)) {
      on.move(now.x - before.x, now.y - before.y)
    }
    held.set(event.pointerId, { ...before, ...now })
  }
  const up = (event: PointerEvent) => {
    const before = held.get(event.pointerId)
    held.delete(event.pointerId)
    if (!before || held.size || event.pointerType !== 'touch' || event.type === 'pointercancel') return
    const dx = before.x - before.startX
    if (Math.abs(dx) > 60 && Math.abs(before.y - before.startY) < 40) on.swipe?.(dx < 0 ? 1 : -1)
  }
  const wheel = (event: WheelEvent) => {
    event.preventDefault()
    const point = at(event)
    on.zoom(Math.exp(-event.deltaY / 300), point.x, point.y)
  }
  element.addEventListener('pointerdown', down)
  element.addEventListener('pointermove', move)
  element.addEventListener('pointerup', up)
  element.addEventListener('pointercancel', up)
  element.addEventListener('wheel', wheel, { passive: false })
  return () => {
    element.removeEventListener('pointerdown', down)
    element.removeEventListener('pointermove', move)
    element.removeEventListener('pointerup', up)
    element.removeEventListener('pointercancel', up)
    element.removeEventListener('wheel', wheel)
  }
}
