import { t } from '../i18n'
import { drawSweep, sending } from '../state/actions'
import { faults } from '../state/draft'
import { server } from '../state/server'
import { axes, axesAsked, sweeping, type AxisDraft } from '../state/sweeps'
import { described, Fault } from './fields'
import type { Key } from '../i18n'

const NAMES: [string, Key | null, string][] = [
  ['steps', 'steps', '10, 20, 30'],
  ['guidance', 'guidance', '2..8:2'],
  ['seed', 'seed', '1..4'],
  ['sampler', 'sampler', 'euler, dpmpp_2m'],
  ['schedule', 'schedule', 'karras, exponential'],
  ['prompt', 'sweepWords', 'fox, owl, cat'],
  ['size', 'sweepSize', '512x512, 512x768'],
  ['strength', 'strength', '0.3, 0.6, 0.9'],
]

/** What a grid varies: one direction, or two. */
export function SweepFields() {
  const set = (at: 0 | 1, values: Partial<AxisDraft>) => {
    const next = { ...axes.value[at], ...values }
    axes.value = at === 0 ? [next, axes.value[1]] : [axes.value[0], next]
    if (faults.value.axes) faults.value = {}
  }
  const known: Record<string, string[]> = { sampler: (server.value?.samplers ?? []).map(({ id }) => id), schedule: server.value?.schedules ?? [] }
  return (
    <details id="sweep" open={sweeping.value} onToggle={(event) => (sweeping.value = event.currentTarget.open)}>
      <summary>{t('sweep')}</summary>
      <p>
        <small>{t('sweepHelp')}</small>
      </p>
      {([0, 1] as const).map((at) => {
        const { name, values } = axes.value[at]
        const row = NAMES.find(([one]) => one === name)
        return (
          <div key={at} class="axis">
            <label>
              {t(at === 0 ? 'sweepAcross' : 'sweepDown')}
              <select id={at === 0 ? 'field-axes' : undefined} value={name} onChange={(event) => set(at, { name: event.currentTarget.value, values: '' })}>
                {at === 0 ? null : <option value="">{t('sweepNothing')}</option>}
                {NAMES.map(([id, key]) => (
                  <option key={id} value={id}>
                    {key ? t(key) : id}
                  </option>
                ))}
              </select>
            </label>
            {name ? (
              <label>
                {t('sweepValues')}
                <input
                  value={values}
                  placeholder={row?.[2]}
                  autocomplete="off"
                  spellcheck={false}
                  onInput={(event) => set(at, { values: event.currentTarget.value })}
                  onKeyDown={(event) => {
                    if (event.key !== 'Enter' || event.isComposing) return
                    event.preventDefault()
                    void drawSweep()
                  }}
                  {...described('axes')}
                />
              </label>
            ) : null}
            {known[name] ? (
              <p class="row wrap">
                {known[name].map((id) => {
                  const all = values.split(',').map((one) => one.trim()).filter(Boolean)
                  const on = all.includes(id)
                  return (
                    <button
                      key={id}
                      type="button"
                      class="chip"
                      aria-pressed={on}
                      onClick={() => set(at, { values: (on ? all.filter((one) => one !== id) : [...all, id]).join(', ') })}
                    >
                      {id}
                    </button>
                  )
                })}
              </p>
            ) : null}
          </div>
        )
      })}
      <Fault name="axes" />
      <p>
        <button type="button" aria-disabled={sending.value > 0 || !axesAsked().length ? 'true' : undefined} onClick={() => axesAsked().length && void drawSweep()}>
          {t('drawSweep')}
        </button>{' '}
        <a href="#sweeps">{t('allSweeps')}</a>
      </p>
    </details>
  )
}
