import { useSignal } from '@preact/signals'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { inputOf, type Input } from '../state/inputs'
import { tellProblem } from '../state/ui'
import { Notice } from '../views/notice'
import { fitted, gestures, held, zoomed, type Place } from '../zoom'
import { Mask, type Box, type Stroke } from './engine'
import { pngOf, valuesOf } from './picture'

type Tool = 'paint' | 'erase' | 'pan'

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
  const rectangle = useSignal({ x: 0, y: 0, width: Math.round(width / 2), height: Math.round(height / 2) })

  const draw = ({ x, y, width: w, height: h }: Box) => {
    changed.value++
    if (!w || !h) return
    const out = new ImageData(w, h)
    for (let row = 0; row < h; row++) {
      for (let column = 0; column < w; column++) {
        const i = 4 * (row * w + column)
        out.data[i] = 255
        out.data[i + 1] = 70
        out.data[i + 2] = 60
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
    if (props.mask) valuesOf(props.mask.blob, width, height).then((data) => add({ kind: 'load', data }), tellProblem)
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
      undo()
      return
    }
    if (tool.value === 'pan' || event.button !== 0 || fingers.current.size > 1) return
    painting.current = event.pointerId
    add({ kind: tool.value, soft: soft.value, points: [at(event)] })
  }
  const move = (event: PointerEvent) => {
    if (painting.current !== event.pointerId) return
    for (const one of event.getCoalescedEvents?.() ?? [event]) draw(mask.extend(at(one)))
  }
  const up = (event: PointerEvent) => {
    fingers.current.delete(event.pointerId)
    if (painting.current === event.pointerId) painting.current = null
  }
  const finish = async () => {
    try {
      onDone(mask.empty ? null : await inputOf(await pngOf(mask)))
    } catch (error) {
      tellProblem(error)
    }
    dialog.current!.close()
  }
  const save = async () => {
    const link = document.createElement('a')
    link.href = URL.createObjectURL(await pngOf(mask))
    link.download = 'mask.png'
    link.click()
    URL.revokeObjectURL(link.href)
  }
  const keys = (event: KeyboardEvent) => {
    const control = event.ctrlKey || event.metaKey
    if (control && event.key === 'z') event.shiftKey ? redo() : undo()
    else if (control && event.key === 'y') redo()
    else if (event.target instanceof HTMLInputElement && event.target.type === 'number') return
    else if (event.key === 'b') tool.value = 'paint'
    else if (event.key === 'e') tool.value = 'erase'
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
  const tools: [Tool, string][] = [
    ['paint', t('brush')],
    ['erase', t('eraser')],
    ['pan', t('pan')],
  ]
  return (
    <dialog ref={dialog} class="masking" aria-label={t('editMask')} onClose={onClose} onKeyDown={keys}>
      <div class="bar row wrap">
        {tools.map(([one, label]) => (
          <button key={one} type="button" aria-pressed={tool.value === one} onClick={() => (tool.value = one)}>
            {label}
          </button>
        ))}
        <label class="row">
          {t('brushSize')}
          <input
            type="range"
            min={1}
            max={Math.max(width, height) / 2}
            value={size.value}
            onInput={(event) => (size.value = Number(event.currentTarget.value))}
          />
        </label>
        <label class="row">
          {t('softEdge')}
          <input type="range" min={0} max={1} step={0.05} value={soft.value} onInput={(event) => (soft.value = Number(event.currentTarget.value))} />
        </label>
        <button type="button" disabled={!mask.canUndo} onClick={undo}>
          {t('undo')}
        </button>
        <button type="button" disabled={!mask.canRedo} onClick={redo}>
          {t('redo')}
        </button>
        <button type="button" onClick={() => add({ kind: 'invert' })}>
          {t('invert')}
        </button>
        <button type="button" onClick={() => add({ kind: 'clear' })}>
          {t('clear')}
        </button>
        <button type="button" aria-label={t('zoomOut')} onClick={() => zoom(0.8)}>
          −
        </button>
        <button type="button" onClick={fit}>
          {t('zoomFit')}
        </button>
        <button type="button" aria-label={t('zoomIn')} onClick={() => zoom(1.25)}>
          +
        </button>
        <span class="grow" />
        <button type="button" class="main" onClick={() => void finish()}>
          {t('done')}
        </button>
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
      <div
        ref={box}
        class={`sight ${tool.value}`}
        aria-label={t('maskHelp')}
        role="img"
        onPointerDown={down}
        onPointerMove={move}
        onPointerUp={up}
        onPointerCancel={up}
      >
        <img src={picture.url} alt="" draggable={false} style={moved} class={scale > 3 ? 'sharp' : ''} />
        <canvas ref={canvas} width={width} height={height} style={moved} class={scale > 3 ? 'sharp' : ''} />
      </div>
      <details class="about">
        <summary>{t('rectangle')}</summary>
        <div class="row wrap end">
          {(
            [
              ['x', t('left')],
              ['y', t('top')],
              ['width', t('width')],
              ['height', t('height')],
            ] as const
          ).map(([name, label]) => (
            <label key={name}>
              {label}
              <input
                type="number"
                value={rectangle.value[name]}
                onInput={(event) => (rectangle.value = { ...rectangle.value, [name]: Number(event.currentTarget.value) })}
              />
            </label>
          ))}
          <button type="button" onClick={() => add({ kind: 'rectangle', ...rectangle.value })}>
            {t('addRectangle')}
          </button>
          <label class="filepick">
            {t('loadMask')}
            <input
              type="file"
              accept="image/png,image/jpeg,image/webp"
              onChange={(event) => {
                const file = event.currentTarget.files?.[0]
                if (file) valuesOf(file, width, height).then((data) => add({ kind: 'load', data }), tellProblem)
              }}
            />
          </label>
          <button type="button" onClick={() => void save()}>
            {t('saveMask')}
          </button>
        </div>
      </details>
      <Notice />
    </dialog>
  )
}
