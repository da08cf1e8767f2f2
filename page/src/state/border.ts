import type { Place, Size } from '../zoom'

/** Pixels that a picture is extended by: left, top, right, bottom. */
export type Border = readonly [number, number, number, number]

export const GRID = 8

/** The whole with its border, in the middle of a box with some room around it; the place is the picture's own. */
export function laidOut(picture: Size, border: Border, box: Size): Place {
  const [left, top, right, bottom] = border
  const width = picture.width + left + right
  const height = picture.height + top + bottom
  const room = Math.max(width, height) / 5
  const scale = Math.min(box.width / (width + room), box.height / (height + room)) || 1
  return { scale, x: (box.width - width * scale) / 2 + left * scale, y: (box.height - height * scale) / 2 + top * scale }
}

/**
 * A border with some sides moved outwards by so many picture pixels: on the grid, not inwards of the picture, and
 * within what the server draws. `sides`: -1 left or top, 1 right or bottom, 0 neither.
 */
export function dragged(from: Border, sides: readonly [number, number], by: readonly [number, number], picture: Size, most: { side: number; pixels: number }): Border {
  const next: [number, number, number, number] = [...from]
  const index = [sides[0] < 0 ? 0 : 2, sides[1] < 0 ? 1 : 3] as const
  const length = () => [picture.width + next[0] + next[2], picture.height + next[1] + next[3]] as const
  for (const axis of [0, 1] as const) {
    if (!sides[axis]) continue
    const i = index[axis]
    const room = most.side - length()[axis] + next[i]
    next[i] = Math.max(0, Math.min(Math.round((from[i] + by[axis]) / GRID) * GRID, Math.floor(room / GRID) * GRID))
  }
  while (length()[0] * length()[1] > most.pixels && index.some((i, axis) => sides[axis] && next[i] > 0)) {
    for (const axis of [0, 1] as const) if (sides[axis]) next[index[axis]] = Math.max(0, next[index[axis]] - GRID)
  }
  return next
}
