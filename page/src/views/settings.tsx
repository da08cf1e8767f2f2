import { api } from '../api'
import { LANGUAGES, t, type Language } from '../i18n'
import { locked, server } from '../state/server'
import { prefer, preferences, tellProblem, type Preferences } from '../state/ui'

export function Settings() {
  const { language, theme, previews } = preferences.value
  const known = server.value
  const signOut = async () => {
    try {
      await api.signOut()
      locked.value = true
    } catch (error) {
      tellProblem(error)
    }
  }
  return (
    <section class="settings" aria-label={t('settings')}>
      <h2>{t('settings')}</h2>
      <label>
        {t('language')}
        <select value={language ?? ''} onChange={(event) => prefer({ language: (event.currentTarget.value || null) as Language | null })}>
          <option value="">{t('system')}</option>
          {Object.entries(LANGUAGES).map(([id, name]) => (
            <option key={id} value={id} lang={id}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <label>
        {t('theme')}
        <select value={theme} onChange={(event) => prefer({ theme: event.currentTarget.value as Preferences['theme'] })}>
          {(['system', 'light', 'dark'] as const).map((one) => (
            <option key={one} value={one}>
              {t(one)}
            </option>
          ))}
        </select>
      </label>
      <label class="check">
        <input type="checkbox" checked={previews} onChange={(event) => prefer({ previews: event.currentTarget.checked })} />
        {t('previews')}
      </label>
      {known?.keys_needed ? (
        <p>
          {t('key')}: {known.key}{' '}
          <button type="button" onClick={() => void signOut()}>
            {t('signOut')}
          </button>
        </p>
      ) : null}
      <p>
        <small>Darkroom {known?.version}</small>
      </p>
    </section>
  )
}
