import { useSignal } from '@preact/signals'
import { api, Problem } from '../api'
import { t } from '../i18n'
import { begin } from '../state/begin'

/** A key for a cookie; the key itself is kept nowhere. */
export function SignIn() {
  const key = useSignal('')
  const wrong = useSignal('')
  const send = async (event: Event) => {
    event.preventDefault()
    try {
      await api.signIn(key.value.trim())
      key.value = ''
      await begin()
    } catch (error) {
      wrong.value = error instanceof Problem ? error.message : String(error)
    }
  }
  return (
    <main class="signin">
      <h1>Darkroom</h1>
      <form onSubmit={(event) => void send(event)}>
        <p>{t('keyHint')}</p>
        <label>
          {t('key')}
          <input
            type="password"
            autocomplete="current-password"
            value={key.value}
            aria-invalid={wrong.value ? 'true' : undefined}
            aria-describedby="key-fault"
            onInput={(event) => (key.value = event.currentTarget.value)}
            required
            autofocus
          />
        </label>
        <p class="fault" id="key-fault" role="alert">
          {wrong.value}
        </p>
        <button type="submit" class="main">
          {t('signIn')}
        </button>
      </form>
    </main>
  )
}
