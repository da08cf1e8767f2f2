import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { t, type Key } from '../i18n'
import { change, draft } from '../state/draft'
import { merged } from '../state/recipe'
import { server } from '../state/server'
import { prefer, preferences } from '../state/ui'
import { styled } from '../state/words'
import { Icon } from './icon'

/** Settings and styles under a name, kept by the server by key; and the styles that the server has for everybody. */
export function Presets() {
  const { presets, styles } = preferences.value
  const keepPreset = (name: string) => {
    const { seed: _, ...kept } = draft.value
    prefer({ presets: { ...presets, [name]: kept } })
  }
  const keepStyle = (name: string) => prefer({ styles: { ...styles, [name]: { prompt: draft.value.prompt, negative: draft.value.negative } } })
  const put = ({ prompt, negative }: { prompt: string; negative: string }) =>
    change({ prompt: styled(draft.value.prompt, prompt), negative: styled(draft.value.negative, negative) })
  const shared = (server.value?.styles ?? []).filter((one) => !(one.name in styles))
  return (
    <>
      <Named title="presets" keep="savePreset" all={presets} use={(kept) => (draft.value = merged({ ...draft.value, ...kept }))} onKeep={keepPreset} onChange={(next) => prefer({ presets: next })} />
      <Named title="styles" keep="saveStyle" hint="styleHint" all={styles} use={put} onKeep={keepStyle} onChange={(next) => prefer({ styles: next })}>
        {shared.map((one) => (
          <li key={one.name}>
            <button type="button" class="chip" title={one.prompt} onClick={() => put({ prompt: one.prompt, negative: one.negative_prompt })}>
              {one.name}
            </button>
          </li>
        ))}
      </Named>
    </>
  )
}

function Named<T extends object>(props: {
  title: Key
  keep: Key
  hint?: Key
  all: Record<string, T>
  use: (one: T) => void
  onKeep: (name: string) => void
  onChange: (next: Record<string, T>) => void
  children?: ComponentChildren
}) {
  const { title, keep, hint, all, use, onKeep, onChange, children } = props
  const name = useSignal('')
  const save = () => {
    const wanted = name.value.trim()
    if (!wanted) return
    onKeep(wanted)
    name.value = ''
  }
  return (
    <details>
      <summary>{t(title)}</summary>
      <ul class="extras">
        {Object.entries(all).map(([one, values]) => (
          <li key={one}>
            <button type="button" class="chip" onClick={() => use(values)}>
              {one}
            </button>
            <button
              type="button"
              class="plain"
              aria-label={`${t('remove')}: ${one}`}
              onClick={() => onChange(Object.fromEntries(Object.entries(all).filter(([other]) => other !== one)))}
            >
              <Icon name="close" />
            </button>
          </li>
        ))}
        {children}
      </ul>
      {hint ? <small>{t(hint)}</small> : null}
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
          {t(keep)}
        </button>
      </div>
    </details>
  )
}
