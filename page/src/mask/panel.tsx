import { useSignal } from '@preact/signals'
import { t } from '../i18n'
import { FilePick } from '../views/filepick'
import type { Box } from './engine'

/** A rectangle by its numbers, and masks from files and into one. */
export function Panel(props: { width: number; height: number; add: (box: Box) => void; load: (file: Blob) => void; save: () => void }) {
  const { width, height, add, load, save } = props
  const box = useSignal<Box>({ x: 0, y: 0, width: Math.round(width / 2), height: Math.round(height / 2) })
  const fields = [
    ['x', t('left')],
    ['y', t('top')],
    ['width', t('width')],
    ['height', t('height')],
  ] as const
  return (
    <div class="about">
      <details>
        <summary>{t('byNumbers')}</summary>
        <div class="row wrap end">
          {fields.map(([name, label]) => (
            <label key={name}>
              {label}
              <input
                type="number"
                value={box.value[name]}
                onInput={(event) => (box.value = { ...box.value, [name]: Number(event.currentTarget.value) })}
                onKeyDown={(event) => event.key === 'Enter' && add(box.value)}
              />
            </label>
          ))}
          <button type="button" onClick={() => add(box.value)}>
            {t('addRectangle')}
          </button>
        </div>
      </details>
      <div class="row wrap">
        <FilePick label={t('loadMask')} take={load} />
        <button type="button" onClick={save}>
          {t('saveMask')}
        </button>
      </div>
    </div>
  )
}
