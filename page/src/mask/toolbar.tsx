import type { Signal } from '@preact/signals'
import { t } from '../i18n'

export type Tool = 'paint' | 'erase' | 'rectangle' | 'pan'

/** What a mask is painted with, and what is done with all of it. */
export function Toolbar(props: {
  tool: Signal<Tool>
  size: Signal<number>
  soft: Signal<number>
  largest: number
  undo: (() => void) | null
  redo: (() => void) | null
  invert: () => void
  clear: () => void
  zoom: (factor: number) => void
  fit: () => void
  done: () => void
  close: () => void
}) {
  const { tool, size, soft, largest, undo, redo, invert, clear, zoom, fit, done, close } = props
  const tools: [Tool, string, string][] = [
    ['paint', t('brush'), 'b'],
    ['erase', t('eraser'), 'e'],
    ['rectangle', t('rectangle'), 'r'],
    ['pan', t('pan'), 'm'],
  ]
  return (
    <div class="bar row wrap">
      {tools.map(([one, label, key]) => (
        <button key={one} type="button" title={key} aria-pressed={tool.value === one} onClick={() => (tool.value = one)}>
          {label}
        </button>
      ))}
      <label class="row">
        {t('brushSize')}
        <input
          type="range"
          title="[ ]"
          min={1}
          max={largest}
          value={size.value}
          onInput={(event) => (size.value = Number(event.currentTarget.value))}
        />
      </label>
      <label class="row">
        {t('softEdge')}
        <input type="range" min={0} max={1} step={0.05} value={soft.value} onInput={(event) => (soft.value = Number(event.currentTarget.value))} />
      </label>
      <button type="button" title="Ctrl+Z" disabled={!undo} onClick={() => undo?.()}>
        {t('undo')}
      </button>
      <button type="button" title="Ctrl+Y" disabled={!redo} onClick={() => redo?.()}>
        {t('redo')}
      </button>
      <button type="button" title="x" onClick={invert}>
        {t('invert')}
      </button>
      <button type="button" onClick={clear}>
        {t('clear')}
      </button>
      <span class="row">
        <button type="button" aria-label={t('zoomOut')} onClick={() => zoom(0.8)}>
          −
        </button>
        <button type="button" title="0" onClick={fit}>
          {t('zoomFit')}
        </button>
        <button type="button" aria-label={t('zoomIn')} onClick={() => zoom(1.25)}>
          +
        </button>
      </span>
      <span class="row ending">
        <button type="button" class="main" onClick={done}>
          {t('done')}
        </button>
        <button type="button" onClick={close}>
          {t('close')}
        </button>
      </span>
    </div>
  )
}
