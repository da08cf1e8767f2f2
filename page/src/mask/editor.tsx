import { useSignal } from '@preact/signals'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { save } from '../state/files'
import { inputOf, type Input } from '../state/inputs'
import { tellProblem } from '../state/ui'
import { Notice } from '../views/notice'
import { fitted, gestures, held, zoomed, type Place } from '../zoom'
import { Mask, type Box, type Stroke } from './engine'
import { Panel } from './panel'
import { pngOf, valuesOf } from './picture'
import { Toolbar, type Tool } from './toolbar'

export function MaskEditor(props: { picture: Input; mask: Input | null; onDone: (mask: Input | null) => void; onClose: () => void }) {
  const { picture, onDone, onClose } = props
  const { width, height } = picture
  const dialog = useRef<HTMLDialogElement>(null)
  const box = useRef<HTMLDivElement>(null)
  const canvas = useRef<HTMLCanvasElement>(null)
  const mask = useMemo(() => new Mask(width, height), [picture])
  const tool = useSignal<Tool>('paint')
  const size = useSignal(Math.max(4, Math.round(Math.min(width, height) / 8)))
  const soft = useSignal(0)
  const place = useSignal<Place>({ scale: 1, x: 0, y: 0 })
  const changed = useSignal(0) // counts: the mask itself is no signal
  /** The rectangle that is being drawn: two corners, on the borders of pixels. */
  const corners = useSignal<{ x: number; y: number; toX: number; toY: number } | null>(null)
  const pointer = useSignal<{ x: number; y: number } | null>(null)

  const stripe = Math.max(2, Math.round(Math.max(width, height) / 60))
  const draw = ({ x, y, width: w, height: h }: Box) => {
    changed.value++
    if (!w || !h) return
    const out = new ImageData(w, h)
    for (let row = 0; row < h; row++) {
      for (let column = 0; column < w; column++) {
        const i = 4 * (row * w + column)
        // Stripes of two colours: one of them shows on any picture.
        const colour = ((y + row + x + column) / stripe) & 1 ? [255, 40, 90] : [40, 60, 255]
        out.data.set(colour, i)
        out.data[i + 3] = mask.data[(y + row) * width + x + column]! * 0.6
      }
    }
    canvas.current!.getContext('2d')!.putImageData(out, x, y)
  }
  const whole = { x: 0, y: 0, width, height }
  const add = (stroke: Stroke) => draw(mask.add(stroke))
  const undo = () => mask.undo() && draw(whole)
  const redo = () => mask.redo() && draw(whole)
  const room = () => ({ width: box.current!.clientWidth, height: box.current!.clientHeight })
  const fit = () => (place.value = fitted(picture, room(), 8))
  const zoom = (factor: number, x = room().width / 2, y = room().height / 2) =>
    (place.value = held(zoomed(place.value, factor, x, y, fitted(picture, room(), 8).scale), picture, room()))

  useEffect(() => {
    dialog.current!.showModal()
    const observer = new ResizeObserver(() => box.current && fit())
    observer.observe(box.current!)
    if (props.mask) load(props.mask.blob)
    const end = gestures(box.current!, {
      move: (dx, dy) => (place.value = held({ ...place.value, x: place.value.x + dx, y: place.value.y + dy }, picture, room())),
      zoom,
      drags: (event) => tool.value === 'pan' || (event.buttons & 4) === 4,
    })
    return () => {
      observer.disconnect()
      end()
    }
  }, [])

  /** Where a pointer is, in picture pixels, and how hard it presses. */
  const at = (event: PointerEvent) => {
    const rect = box.current!.getBoundingClientRect()
    const { scale, x, y } = place.value
    const pressed = event.pointerType === 'pen' ? Math.max(0.15, event.pressure * 2) : 1
    return { x: (event.clientX - rect.left - x) / scale, y: (event.clientY - rect.top - y) / scale, r: (size.value / 2) * pressed }
  }
  const painting = useRef<number | null>(null)
  const fingers = useRef(new Set<number>())
  const down = (event: PointerEvent) => {
    fingers.current.add(event.pointerId)
    if (fingers.current.size > 1 && painting.current !== null) {
      painting.current = null // two fingers zoom: what the first one had begun is taken back
      if (corners.value) corners.value = null
      else undo()
      return
    }
    if (tool.value === 'pan' || event.button !== 0 || fingers.current.size > 1) return
    painting.current = event.pointerId
    const { x, y } = at(event)
    if (tool.value === 'rectangle') corners.value = { x: Math.round(x), y: Math.round(y), toX: Math.round(x), toY: Math.round(y) }
    else add({ kind: tool.value, soft: soft.value, points: [at(event)] })
  }
  const move = (event: PointerEvent) => {
    const rect = box.current!.getBoundingClientRect()
    pointer.value = event.pointerType === 'touch' ? null : { x: event.clientX - rect.left, y: event.clientY - rect.top }
    if (painting.current !== event.pointerId) return
    if (corners.value) {
      const { x, y } = at(event)
      corners.value = { ...corners.value, toX: Math.round(x), toY: Math.round(y) }
      return
    }
    for (const one of event.getCoalescedEvents?.() ?? [event]) draw(mask.extend(at(one)))
  }
  const up = (event: PointerEvent) => {
    fingers.current.delete(event.pointerId)
    if (painting.current !== event.pointerId) return
    painting.current = null
    const drawn = between()
    corners.value = null
    if (drawn && drawn.width > 0 && drawn.height > 0) add({ kind: 'rectangle', ...drawn })
  }
  const between = (): Box | null => {
    if (!corners.value) return null
    const { x, y, toX, toY } = corners.value
    return { x: Math.min(x, toX), y: Math.min(y, toY), width: Math.abs(toX - x), height: Math.abs(toY - y) }
  }
  const load = (file: Blob) => void valuesOf(file, width, height).then((data) => add({ kind: 'load', data }), tellProblem)
  const finish = async () => {
    try {
      onDone(mask.empty ? null : await inputOf(await pngOf(mask)))
    } catch (error) {
      tellProblem(error)
    }
    dialog.current!.close()
  }
  const keys = (event: KeyboardEvent) => {
    const control = event.ctrlKey || event.metaKey
    if (control && event.key === 'z') event.shiftKey ? redo() : undo()
    else if (control && event.key === 'y') redo()
    else if (event.target instanceof HTMLInputElement && event.target.type === 'number') return
    else if (event.key === 'b') tool.value = 'paint'
    else if (event.key === 'e') tool.value = 'erase'
    else if (event.key === 'r') tool.value = 'rectangle'
    else if (event.key === 'm') tool.value = 'pan'
    else if (event.key === 'x') add({ kind: 'invert' })
    else if (event.key === '[') size.value = Math.max(1, Math.round(size.value * 0.8))
    else if (event.key === ']') size.value = Math.round(size.value * 1.25) + 1
    else if (event.key === '+') zoom(1.25)
    else if (event.key === '-') zoom(0.8)
    else if (event.key === '0') fit()
    else return
    event.preventDefault()
  }
  void changed.value
  const { scale, x, y } = place.value
  const moved = { width: `${width}px`, height: `${height}px`, transform: `translate(${x}px, ${y}px) scale(${scale})` }
  const ring = tool.value === 'paint' || tool.value === 'erase' ? pointer.value : null
  const across = size.value * scale
  const drawn = between()
  return (
    <dialog ref={dialog} class="masking" aria-label={t('editMask')} onClose={onClose} onKeyDown={keys}>
      <Toolbar
        tool={tool}
        size={size}
        soft={soft}
        largest={Math.max(width, height) / 2}
        undo={mask.canUndo ? undo : null}
        redo={mask.canRedo ? redo : null}
        invert={() => add({ kind: 'invert' })}
        clear={() => add({ kind: 'clear' })}
        zoom={zoom}
        fit={fit}
        done={() => void finish()}
        close={() => dialog.current!.close()}
      />
      <div
        ref={box}
        class={`sight ${tool.value}`}
        aria-label={t('maskHelp')}
        role="img"
        onPointerDown={down}
        onPointerMove={move}
        onPointerUp={up}
        onPointerCancel={up}
        onPointerLeave={() => (pointer.value = null)}
      >
        <img src={picture.url} alt="" draggable={false} style={moved} class={scale > 3 ? 'sharp' : ''} />
        <canvas ref={canvas} width={width} height={height} style={moved} class={scale > 3 ? 'sharp' : ''} />
        {ring ? <div class="ring" style={{ left: `${ring.x - across / 2}px`, top: `${ring.y - across / 2}px`, width: `${across}px`, height: `${across}px` }} /> : null}
        {drawn ? (
          <div
            class="ring square"
            style={{ left: `${x + drawn.x * scale}px`, top: `${y + drawn.y * scale}px`, width: `${drawn.width * scale}px`, height: `${drawn.height * scale}px` }}
          />
        ) : null}
      </div>
      <Panel
        width={width}
        height={height}
        add={(rectangle) => add({ kind: 'rectangle', ...rectangle })}
        load={load}
        save={() => void pngOf(mask).then((blob) => save(blob, 'mask.png'), tellProblem)}
      />
      <Notice />
    </dialog>
  )
}
