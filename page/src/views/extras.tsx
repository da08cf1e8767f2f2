import { useComputed, useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { api, type Adapter, type Adapters } from '../api'
import { t } from '../i18n'
import { change, draft } from '../state/draft'
import { said } from '../state/ui'
import { loras as lorasIn, withLora, withoutLora, withWord } from '../state/words'
import { FilePick } from './filepick'
import { addControlNet } from './inputs'

const SHOWN = 60 // of a search; more than that is for the search to narrow

/** LoRA and learned words, put into the prompt; ControlNets, put beside it. */
export function Extras() {
  const found = useSignal<Adapters | null>(null)
  const { model } = draft.value
  useEffect(() => {
    let timer = 0
    const read = () =>
      void api.adapters(model).then(
        (answer) => {
          found.value = answer
          if (answer.reading) timer = setTimeout(read, 1500) // large folders take a while
        },
        () => undefined,
      )
    read()
    return () => clearTimeout(timer)
  }, [model])
  if (!found.value) return null
  return (
    <>
      <details>
        <summary>{t('extras')}</summary>
        <Picker found={found.value} />
      </details>
      {found.value.controlnets.length ? (
        <FilePick label={t('addControl')} take={(file) => void addControlNet(file)} />
      ) : null}
    </>
  )
}

function Picker({ found }: { found: Adapters }) {
  const wanted = useSignal('')
  const weight = useSignal('1')
  const used = useComputed(() => lorasIn(draft.value.prompt))
  const sought = wanted.value.trim().toLowerCase()
  const fits = (one: Adapter) => [one.name, one.title ?? '', ...one.words].some((text) => text.toLowerCase().includes(sought))
  const put = (prompt: string) => {
    change({ prompt })
    said.value = prompt
  }
  const rows = [
    ...found.loras.filter(fits).map((one) => ({ one, lora: true })),
    ...found.embeddings.filter(fits).map((one) => ({ one, lora: false })),
  ].sort((a, b) => Number(a.one.fits === false) - Number(b.one.fits === false))
  return (
    <>
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
      <ul class="adapters">
        {rows.slice(0, SHOWN).map(({ one, lora }) => {
          const on = lora && used.value.includes(one.name)
          const prompt = draft.value.prompt
          const text = () => (lora ? (on ? withoutLora(prompt, one.name) : withLora(prompt, one.name, weight.value)) : withWord(prompt, one.use))
          return (
            <li key={`${lora} ${one.name}`} class={one.fits === false ? 'unfit' : ''}>
              <button
                type="button"
                class="chip"
                aria-pressed={lora ? on : undefined}
                aria-disabled={one.fits === false && !on ? 'true' : undefined}
                aria-describedby={one.why ? `why-${lora}-${one.name}` : undefined}
                onClick={() => (one.fits !== false || on) && put(text())}
              >
                {one.name} <small>{lora ? 'LoRA' : t('learnedWord')}</small>
              </button>
              {one.fits === false
                ? null
                : one.words.map((word) => (
                    <button key={word} type="button" class="plain chip" title={t('addWord', { word })} onClick={() => put(withWord(prompt, word))}>
                      + {word}
                    </button>
                  ))}
              {one.why ? <small id={`why-${lora}-${one.name}`}>{one.why}</small> : null}
            </li>
          )
        })}
      </ul>
      {rows.length > SHOWN ? <p>{t('moreExtras', { n: rows.length - SHOWN })}</p> : null}
      {rows.length ? null : <p>{t('noExtras')}</p>}
      {found.reading ? <p>{t('stillReading', { n: found.reading })}</p> : null}
    </>
  )
}
