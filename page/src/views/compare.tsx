import { useSignal } from '@preact/signals'
import { fileOf } from '../api'
import { t } from '../i18n'

/** Two pictures in one place, with a border between them that moves. */
export function Compare({ before, after }: { before: string; after: string }) {
  const at = useSignal(50)
  return (
    <div class="compare">
      <div>
        <img src={fileOf(after)} alt="" />
        <img src={fileOf(before)} alt="" style={{ clipPath: `inset(0 ${100 - at.value}% 0 0)` }} />
      </div>
      <label>
        {t('divide')}
        <input type="range" min={0} max={100} value={at.value} onInput={(event) => (at.value = Number(event.currentTarget.value))} autofocus />
      </label>
    </div>
  )
}
