import { useSignal } from '@preact/signals'
import { t } from '../i18n'
import { draft } from '../state/draft'
import { merged } from '../state/recipe'
import { prefer, preferences } from '../state/ui'
import { Icon } from './icon'

/** Settings under a name, kept by the server by key. */
export function Presets() {
  const name = useSignal('')
  const known = preferences.value.presets
  const save = () => {
    const wanted = name.value.trim()
    if (!wanted) return
    const { seed: _, ...kept } = draft.value
    prefer({ presets: { ...known, [wanted]: kept } })
    name.value = ''
  }
  return (
    <details>
      <summary>{t('presets')}</summary>
      <ul class="extras">
        {Object.entries(known).map(([title, values]) => (
          <li key={title}>
            <button type="button" class="chip" onClick={() => (draft.value = merged({ ...draft.value, ...values }))}>
              {title}
            </button>
            <button
              type="button"
              class="plain"
              aria-label={`${t('remove')}: ${title}`}
              onClick={() => prefer({ presets: Object.fromEntries(Object.entries(known).filter(([one]) => one !== title)) })}
            >
              <Icon name="close" />
            </button>
          </li>
        ))}
      </ul>
      <div class="row end">
        <label>
          {t('presetName')}
          <input
            maxLength={60}
            value={name.value}
            onInput={(event) => (name.value = event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key !== 'Enter') return
              event.preventDefault()
              save()
            }}
          />
        </label>
        <button type="button" onClick={save}>
          {t('savePreset')}
        </button>
      </div>
    </details>
  )
}
