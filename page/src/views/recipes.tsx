import { signal, useSignal } from '@preact/signals'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { t } from '../i18n'
import { againWith, take, vary } from '../state/actions'
import { server } from '../state/server'
import type { Source } from '../state/source'
import { tellProblem } from '../state/ui'
import type { Key } from '../i18n'

/** A recipe that somebody may want: how it is called, and how it is read. */
export interface Offer {
  title: string
  load: () => Promise<Source>
}

/** The recipe whose actions are shown in a dialog of their own: the gallery's and the queue's. */
export const offered = signal<Offer | null>(null)
/** The recipe of which one setting is going to be changed. */
const changing = signal<Offer | null>(null)

/** What can be done with a recipe, everywhere the same. */
export function RecipeActions({ offer, done }: { offer: Offer; done?: () => void }) {
  const use = (only: 'all' | 'prompt' | 'seed') => () => {
    done?.()
    void take(offer.load, only)
  }
  return (
    <>
      <button type="button" class="main" onClick={use('all')}>
        {t('useAll')}
      </button>
      <button type="button" onClick={use('prompt')}>
        {t('usePrompt')}
      </button>
      <button type="button" onClick={use('seed')}>
        {t('useSeed')}
      </button>
      <button
        type="button"
        onClick={() => {
          done?.()
          changing.value = offer
        }}
      >
        {t('againWith')}
      </button>
      <button
        type="button"
        onClick={() => {
          done?.()
          void vary(offer.load)
        }}
      >
        {t('varyIt')}
      </button>
    </>
  )
}

/** The dialogs of recipes: shown once, by the page. */
export function Recipes() {
  return (
    <>
      {offered.value ? <Offered offer={offered.value} /> : null}
      {changing.value ? <OneChange offer={changing.value} /> : null}
    </>
  )
}

function Offered({ offer }: { offer: Offer }) {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => dialog.current!.showModal(), [])
  return (
    <dialog ref={dialog} class="ask" onClose={() => (offered.value = null)} aria-label={t('info')}>
      <h2>{t('info')}</h2>
      <p dir="auto" class="brief">
        {offer.title}
      </p>
      <div class="stack">
        <RecipeActions offer={offer} done={() => dialog.current!.close()} />
        <button type="button" onClick={() => dialog.current!.close()}>
          {t('close')}
        </button>
      </div>
    </dialog>
  )
}

const SETTINGS: [string, Key][] = [
  ['seed', 'seed'],
  ['prompt', 'prompt'],
  ['negative_prompt', 'negative'],
  ['steps', 'steps'],
  ['guidance_scale', 'guidance'],
  ['sampler', 'sampler'],
  ['schedule', 'schedule'],
  ['strength', 'strength'],
  ['model', 'model'],
]
const NUMBERS = new Set(['steps', 'guidance_scale', 'strength'])

/** The same recipe with one setting changed, drawn at once; the draft stays as it is. */
function OneChange({ offer }: { offer: Offer }) {
  const dialog = useRef<HTMLDialogElement>(null)
  const source = useSignal<Source | null>(null)
  const name = useSignal('seed')
  const value = useSignal('')
  const fault = useSignal('')
  const known = server.value
  const reading = useMemo(() => offer.load().catch(tellProblem), [offer])
  useEffect(() => {
    dialog.current!.showModal()
    void reading.then((found) => {
      if (!found) return dialog.current?.close()
      source.value = found
      value.value ||= of(name.value)
    })
  }, [])
  const of = (one: string): string => {
    const found = one === 'model' ? (source.value?.job?.model ?? source.value?.recipe.model) : source.value?.recipe[one]
    return one === 'seed' || found === undefined || found === null ? '' : String(found)
  }
  const draw = async () => {
    const found = source.value ?? (await reading) // whoever is quicker than the server waits for it
    if (!found) return
    const text = value.value.trim()
    try {
      fault.value = ''
      await againWith(found, name.value, text === '' && name.value !== 'prompt' ? null : NUMBERS.has(name.value) ? Number(text) : text)
      dialog.current?.close()
    } catch (error) {
      fault.value = error instanceof Error ? error.message : String(error)
    }
  }
  const choices: Record<string, string[]> = {
    sampler: (known?.samplers ?? []).map(({ id }) => id),
    schedule: known?.schedules ?? [],
    model: (known?.models ?? []).map((one) => one.name),
  }
  const options = choices[name.value]
  const own = of(name.value)
  const field = {
    id: 'change-value',
    value: value.value,
    'aria-invalid': fault.value ? (true as const) : undefined,
    'aria-describedby': fault.value ? 'change-fault' : undefined,
  }
  return (
    <dialog ref={dialog} class="ask" onClose={() => (changing.value = null)} aria-label={t('againWith')}>
      <form
        noValidate
        onSubmit={(event) => {
          event.preventDefault()
          void draw()
        }}
      >
        <h2>{t('againWith')}</h2>
        <p dir="auto" class="brief">
          {offer.title}
        </p>
        <label>
          {t('whatChanges')}
          <select
            value={name.value}
            onChange={(event) => {
              name.value = event.currentTarget.value
              value.value = of(name.value)
              fault.value = ''
            }}
          >
            {SETTINGS.filter(([one]) => one !== 'strength' || of('strength')).map(([one, label]) => (
              <option key={one} value={one}>
                {t(label)}
              </option>
            ))}
          </select>
        </label>
        <label class="field" for="change-value">
          {own ? t('instead', { value: own.length > 40 ? `${own.slice(0, 39)}…` : own }) : t(name.value === 'seed' ? 'seedHint' : 'newValue')}
        </label>
        {options ? (
          <select {...field} onChange={(event) => (value.value = event.currentTarget.value)}>
            {options.includes(value.value) ? null : <option value={value.value}>{value.value || t('byModel')}</option>}
            {options.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        ) : name.value.includes('prompt') ? (
          <textarea {...field} rows={3} dir="auto" onInput={(event) => (value.value = event.currentTarget.value)} />
        ) : (
          <input {...field} inputMode="decimal" autocomplete="off" onInput={(event) => (value.value = event.currentTarget.value)} />
        )}
        <p class="fault" id="change-fault" role="alert">
          {fault.value}
        </p>
        <div class="row">
          <button type="submit" class="main grow">
            {t('generate')}
          </button>
          <button type="button" onClick={() => dialog.current!.close()}>
            {t('close')}
          </button>
        </div>
      </form>
    </dialog>
  )
}
