import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { api, type Explained } from '../api'
import { t } from '../i18n'
import { draft } from '../state/draft'
import { server } from '../state/server'

/** What the model reads of the prompt: tokens by chunk, with their weights. */
export function Explain() {
  const told = useSignal<Explained | null>(null)
  const { prompt, model } = draft.value
  const ready = server.value?.ready
  useEffect(() => {
    if (!prompt || !ready) {
      told.value = null
      return
    }
    let current = true
    const timer = setTimeout(() => {
      api.explain(prompt, model).then(
        (answer) => current && (told.value = answer),
        () => current && (told.value = null), // a prompt half typed may be one that can't be read
      )
    }, 40)
    return () => {
      current = false
      clearTimeout(timer)
    }
  }, [prompt, model, ready])
  const chunks = (told.value?.parts ?? []).flatMap((part) => part.texts.flatMap((text) => text.chunks))
  if (!chunks.length) return null
  const count = chunks.reduce((sum, chunk) => sum + chunk.length, 0)
  return (
    <details class="explain">
      <summary>
        {t('reads')}: {chunks.length > 1 ? t('tokensIn', { n: count, chunks: chunks.length }) : t('tokens', { n: count })}
      </summary>
      {chunks.map((chunk, i) => (
        <p key={i} class="tokens">
          {chunk.map((token, j) => (
            <span key={j} class={token.weight > 1 ? 'token up' : token.weight < 1 ? 'token down' : 'token'}>
              {token.text}
              {token.weight === 1 ? null : <b>{Math.round(token.weight * 100) / 100}</b>}
            </span>
          ))}
        </p>
      ))}
    </details>
  )
}
