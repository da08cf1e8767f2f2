import { t } from '../i18n'
import { notice } from '../state/ui'
import { Icon } from './icon'

/** What the page says. An open dialog shows it itself: what lies outside of one can't be reached. */
export function Notice() {
  const now = notice.value
  return (
    <div class="notices" role="status">
      {now ? (
        <p class={now.bad ? 'notice bad' : 'notice'}>
          <span>{now.text}</span>
          {now.action ? (
            <button
              type="button"
              onClick={() => {
                now.action!.run()
                notice.value = null
              }}
            >
              {now.action.label}
            </button>
          ) : null}
          <button type="button" class="plain" aria-label={t('dismiss')} onClick={() => (notice.value = null)}>
            <Icon name="close" />
          </button>
        </p>
      ) : null}
    </div>
  )
}
