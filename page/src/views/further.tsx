import { t } from '../i18n'
import { change, draft } from '../state/draft'
import { shown } from '../state/recipe'
import { Icon } from './icon'

/** Settings that came with a recipe and have no field here: each can be taken out. */
export function Further() {
  const all = Object.entries(draft.value.further)
  if (!all.length) return null
  return (
    <fieldset>
      <legend>{t('further')}</legend>
      <ul class="extras">
        {all.map(([name, value]) => (
          <li key={name} class="row">
            <span class="token">
              {name}: {shown(value)}
            </span>
            <button
              type="button"
              class="plain"
              aria-label={`${t('remove')}: ${name}`}
              onClick={() => change({ further: Object.fromEntries(all.filter(([one]) => one !== name)) })}
            >
              <Icon name="close" />
            </button>
          </li>
        ))}
      </ul>
    </fieldset>
  )
}
