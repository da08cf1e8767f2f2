/** A mask in picture pixels: strokes are kept as they were made, and drawn into one byte a pixel. Knows no browser. */

export interface Point {
  x: number
  y: number
  /** Radius here, in picture pixels: pens press more or less. */
  r: number
}

export type Stroke =
  | { kind: 'paint' | 'erase'; soft: number; points: Point[] }
  | { kind: 'rectangle'; x: number; y: number; width: number; height: number }
  | { kind: 'invert' | 'clear' }
  | { kind: 'load'; data: Uint8Array }

export interface Box {
  x: number
  y: number
  width: number
  height: number
}

const EVERY = 16 // strokes between two copies that undo starts from
export const DEPTH = 200 // strokes that can be undone at least; a copy of a large picture is many megabytes

export class Mask {
  readonly data: Uint8Array
  private done: Stroke[] = []
  private undone: Stroke[] = []
  private copies: { after: number; data: Uint8Array }[] = []
  /** What there was before the first of `done`. */
  private base: Uint8Array | null = null

  constructor(
    readonly width: number,
    readonly height: number,
  ) {
    this.data = new Uint8Array(width * height)
  }

  get canUndo(): boolean {
    return this.done.length > 0
  }

  get canRedo(): boolean {
    return this.undone.length > 0
  }

  get empty(): boolean {
    return this.data.every((value) => value === 0)
  }

  /** Add a stroke; what of the picture it changed. */
  add(stroke: Stroke): Box {
    this.undone = []
    return this.put(stroke)
  }

  /** A painted stroke goes on: only its new end is drawn. */
  extend(point: Point): Box {
    const stroke = this.done.at(-1)
    if (stroke?.kind !== 'paint' && stroke?.kind !== 'erase') return { x: 0, y: 0, width: 0, height: 0 }
    const last = stroke.points.at(-1)!
    stroke.points.push(point)
    return this.segment(last, point, stroke)
  }

  undo(): boolean {
    const last = this.done.pop()
    if (!last) return false
    this.undone.push(last)
    this.redraw()
    return true
  }

  redo(): boolean {
    const next = this.undone.pop()
    if (!next) return false
    this.put(next)
    return true
  }

  /** Values as a picture's, white where it is drawn anew. */
  rgba(): Uint8ClampedArray<ArrayBuffer> {
    const out = new Uint8ClampedArray(this.data.length * 4)
    for (let i = 0; i < this.data.length; i++) {
      const value = this.data[i]!
      out[4 * i] = out[4 * i + 1] = out[4 * i + 2] = value
      out[4 * i + 3] = 255
    }
    return out
  }

  private put(stroke: Stroke): Box {
    // A copy is taken before a stroke, since the newest one may still grow.
    if (this.done.length && this.done.length % EVERY === 0 && this.copies.at(-1)?.after !== this.done.length) {
      this.copies.push({ after: this.done.length, data: this.data.slice() })
    }
    const first = this.copies[0]
    if (first && this.done.length >= DEPTH + first.after) {
      this.base = first.data
      this.done.splice(0, first.after)
      this.copies = this.copies.slice(1).map(({ after, data }) => ({ after: after - first.after, data }))
    }
    this.done.push(stroke)
    return this.draw(stroke)
  }

  private redraw(): void {
    while (this.copies.length && this.copies.at(-1)!.after > this.done.length) this.copies.pop()
    const copy = this.copies.at(-1)
    if (copy) this.data.set(copy.data)
    else if (this.base) this.data.set(this.base)
    else this.data.fill(0)
    for (const stroke of this.done.slice(copy?.after ?? 0)) this.draw(stroke)
  }

  private draw(stroke: Stroke): Box {
    const all = { x: 0, y: 0, width: this.width, height: this.height }
    switch (stroke.kind) {
      case 'clear':
        this.data.fill(0)
        return all
      case 'invert':
        for (let i = 0; i < this.data.length; i++) this.data[i] = 255 - this.data[i]!
        return all
      case 'load':
        this.data.set(stroke.data)
        return all
      case 'rectangle': {
        const box = this.clipped(stroke.x, stroke.y, stroke.x + stroke.width, stroke.y + stroke.height)
        for (let y = box.y; y < box.y + box.height; y++) {
          this.data.fill(255, y * this.width + box.x, y * this.width + box.x + box.width)
        }
        return box
      }
      default: {
        const [first, ...rest] = stroke.points
        let box = this.segment(first!, first!, stroke)
        let last = first!
        for (const point of rest) {
          box = joined(box, this.segment(last, point, stroke))
          last = point
        }
        return box
      }
    }
  }

  /** All pixels whose middle is nearer to a line than its radius; a soft edge falls off over its outer part. */
  private segment(a: Point, b: Point, stroke: { kind: 'paint' | 'erase'; soft: number }): Box {
    const most = Math.max(a.r, b.r)
    const box = this.clipped(
      Math.floor(Math.min(a.x, b.x) - most),
      Math.floor(Math.min(a.y, b.y) - most),
      Math.ceil(Math.max(a.x, b.x) + most),
      Math.ceil(Math.max(a.y, b.y) + most),
    )
    const dx = b.x - a.x
    const dy = b.y - a.y
    const length = dx * dx + dy * dy
    for (let y = box.y; y < box.y + box.height; y++) {
      for (let x = box.x; x < box.x + box.width; x++) {
        const px = x + 0.5 - a.x
        const py = y + 0.5 - a.y
        const along = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0
        const distance = Math.hypot(px - along * dx, py - along * dy)
        const radius = a.r + along * (b.r - a.r)
        if (distance > radius) continue
        const inner = radius * (1 - stroke.soft)
        const value = distance <= inner ? 255 : Math.round((255 * (radius - distance)) / (radius - inner))
        const i = y * this.width + x
        const old = this.data[i]!
        this.data[i] = stroke.kind === 'paint' ? Math.max(old, value) : Math.min(old, 255 - value)
      }
    }
    return box
  }

  private clipped(left: number, top: number, right: number, bottom: number): Box {
    const x = Math.max(0, Math.round(left))
    const y = Math.max(0, Math.round(top))
    return {
      x,
      y,
      width: Math.max(0, Math.min(this.width, Math.round(right)) - x),
      height: Math.max(0, Math.min(this.height, Math.round(bottom)) - y),
    }
  }
}

function joined(a: Box, b: Box): Box {
  const x = Math.min(a.x, b.x)
  const y = Math.min(a.y, b.y)
  return {
    x,
    y,
    width: Math.max(a.x + a.width, b.x + b.width) - x,
    height: Math.max(a.y + a.height, b.y + b.height) - y,
  }
}
