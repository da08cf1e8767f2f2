import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { api, type Adapters } from '../api'
import { t } from '../i18n'
import { focusPrompt } from '../state/actions'
import { change, draft } from '../state/draft'
import { addControlNet } from './inputs'

/** LoRA and learned words, put into the prompt; ControlNets, put beside it. */
export function Extras() {
  const found = useSignal<Adapters | null>(null)
  const wanted = useSignal('')
  const weight = useSignal('1')
  useEffect(() => {
    api.adapters().then((answer) => (found.value = answer), () => undefined)
  }, [])
  if (!found.value) return null
  const { loras, embeddings, controlnets } = found.value
  const fits = ({ name }: { name: string }) => name.toLowerCase().includes(wanted.value.trim().toLowerCase())
  const insert = (text: string) => {
    const prompt = draft.value.prompt.trimEnd()
    change({ prompt: prompt ? `${prompt} ${text}` : text })
    focusPrompt()
  }
  const rows = [
    ...loras.filter(fits).map(({ name }) => ({ name, kind: 'LoRA', text: `<lora:${name}:${weight.value || 1}>` })),
    ...embeddings.filter(fits).map(({ name }) => ({ name, kind: '“ ”', text: name })),
  ]
  return (
    <>
      <details>
        <summary>{t('extras')}</summary>
        <div class="grid">
          <label>
            {t('findExtra')}
            <input type="search" value={wanted.value} onInput={(event) => (wanted.value = event.currentTarget.value)} />
          </label>
          <label>
            {t('weight')}
            <input type="number" step="0.05" value={weight.value} onInput={(event) => (weight.value = event.currentTarget.value)} />
          </label>
        </div>
        <ul class="extras">
          {rows.slice(0, 100).map(({ name, kind, text }) => (
            <li key={kind + name}>
              <button type="button" class="chip" title={text} onClick={() => insert(text)}>
                <small>{kind}</small> {name}
              </button>
            </li>
          ))}
        </ul>
        {rows.length ? null : <p>{t('noExtras')}</p>}
      </details>
      {controlnets.length ? (
        <label class="filepick">
          {t('addControl')}
          <input
            type="file"
            accept="image/png,image/jpeg,image/webp"
            onChange={(event) => {
              const file = event.currentTarget.files?.[0]
              event.currentTarget.value = ''
              if (file) void addControlNet(file)
            }}
          />
        </label>
      ) : null}
    </>
  )
}
