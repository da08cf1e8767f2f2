import { describe, expect, it } from 'vitest'
import { DEPTH, Mask, type Stroke } from '../src/mask/engine'

const stroke = (seed: number): Stroke => ({
  kind: seed % 3 ? 'paint' : 'erase',
  soft: (seed % 4) / 4,
  points: Array.from({ length: 3 }, (_, i) => ({ x: (seed * 7 + i * 11) % 40, y: (seed * 5 + i * 3) % 30, r: 2 + (seed % 5) })),
})

describe('a mask', () => {
  it('has exactly the pixels of a rectangle, and no more at the borders', () => {
    const mask = new Mask(8, 6)
    mask.add({ kind: 'rectangle', x: 2, y: 1, width: 3, height: 2 })
    const painted = [...mask.data].flatMap((value, i) => (value ? [`${i % 8},${Math.floor(i / 8)}`] : []))
    expect(painted).toEqual(['2,1', '3,1', '4,1', '2,2', '3,2', '4,2'])
    mask.add({ kind: 'rectangle', x: -5, y: -5, width: 100, height: 100 })
    expect(mask.data.every((value) => value === 255)).toBe(true)
  })

  it('paints a disc of the pixels whose middles lie within it', () => {
    const mask = new Mask(9, 9)
    mask.add({ kind: 'paint', soft: 0, points: [{ x: 4.5, y: 4.5, r: 2 }] })
    const rows = Array.from({ length: 9 }, (_, y) => [...mask.data.slice(9 * y, 9 * y + 9)].filter(Boolean).length)
    expect(rows).toEqual([0, 0, 1, 3, 5, 3, 1, 0, 0])
  })

  it('falls off evenly at a soft edge', () => {
    const mask = new Mask(21, 1)
    mask.add({ kind: 'paint', soft: 1, points: [{ x: 10.5, y: 0.5, r: 10 }] })
    expect([10, 15, 19].map((x) => mask.data[x])).toEqual([255, Math.round(255 / 2), Math.round(25.5)])
  })

  it('is the same after a hundred undone and done again, at every length', () => {
    const mask = new Mask(40, 30)
    const states = [mask.data.slice()]
    for (let i = 0; i < 120; i++) {
      mask.add(i % 17 === 5 ? { kind: 'invert' } : stroke(i))
      states.push(mask.data.slice())
    }
    for (let i = 119; i >= 0; i--) {
      expect(mask.undo()).toBe(true)
      expect(mask.data).toEqual(states[i])
    }
    expect(mask.undo()).toBe(false)
    for (let i = 1; i <= 120; i++) {
      mask.redo()
      expect(mask.data).toEqual(states[i])
    }
    expect(mask.canRedo).toBe(false)
  })

  it('is the same whether a stroke was drawn at once or as it grew, and undo takes all of it', () => {
    const [first, ...rest] = (stroke(4) as { points: { x: number; y: number; r: number }[] }).points
    const grown = new Mask(40, 30)
    grown.add({ kind: 'paint', soft: 0.5, points: [first!] })
    for (const point of rest) grown.extend(point)
    const whole = new Mask(40, 30)
    whole.add({ kind: 'paint', soft: 0.5, points: [first!, ...rest] })
    expect(grown.data).toEqual(whole.data)
    grown.undo()
    expect(grown.empty).toBe(true)
  })
})

describe('undo', () => {
  it('goes back two hundred strokes at least, however many there were, to exactly what there was', () => {
    const mask = new Mask(20, 20)
    const states = [mask.data.slice()]
    for (let i = 0; i < 500; i++) {
      if (i % 50 === 49) mask.add({ kind: 'clear' })
      else mask.add({ kind: 'rectangle', x: i % 19, y: (i * 7) % 19, width: 1 + (i % 3), height: 2 })
      states.push(mask.data.slice())
    }
    let undone = 0
    while (mask.canUndo) {
      mask.undo()
      undone++
      expect(mask.data).toEqual(states.at(-1 - undone))
    }
    expect(undone).toBeGreaterThanOrEqual(DEPTH)
    expect(undone).toBeLessThan(DEPTH + 40)
    for (let i = 0; i < undone; i++) mask.redo()
    expect(mask.data).toEqual(states.at(-1))
  })
})
