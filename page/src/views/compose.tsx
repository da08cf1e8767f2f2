import { size, t } from '../i18n'
import { focusPrompt, sending } from '../state/actions'
import { change, draft, more } from '../state/draft'
import { EMPTY } from '../state/recipe'
import { controls, image, setImage, setMask } from '../state/inputs'
import { live, newestFirst } from '../state/queue'
import { model, server } from '../state/server'
import { uploading } from '../state/uploads'
import { type Model } from '../api'
import { Extras } from './extras'
import { Choice, described, Fault, NumberField, Range } from './fields'
import { Further } from './further'
import { Icon } from './icon'
import { Inputs } from './inputs'
import { Presets } from './presets'
import { Prompt } from './prompt'
import { SweepFields } from './sweep_fields'

export function Compose({ onGenerate }: { onGenerate: () => void }) {
  return (
    <form
      class="compose"
      noValidate
      aria-label={t('draw')}
      onSubmit={(event) => {
        event.preventDefault()
        onGenerate()
      }}
    >
      <Prompt name="prompt" label={t('prompt')} hint={t('promptHint')} rows={3} />
      {!draft.value.prompt && model.value?.examples?.length ? (
        <p class="examples">
          <span>{t('examples')}:</span>
          {model.value.examples.map((text) => (
            <button
              key={text}
              type="button"
              class="chip"
              onClick={() => {
                change({ prompt: text })
                focusPrompt()
              }}
            >
              {text}
            </button>
          ))}
        </p>
      ) : null}
      <button type="submit" class="main" aria-disabled={sending.value > 0 ? 'true' : undefined}>
        {sending.value ? t('generating') : live.value.length ? t('queueAnother') : t('generate')}
      </button>
      {uploading.value ? <progress max={uploading.value.all} value={uploading.value.sent} aria-label={t('uploading')} /> : null}
      <Inputs />
      <details open={more.value} onToggle={(event) => (more.value = event.currentTarget.open)}>
        <summary>{t('more')}</summary>
        {more.value ? <More /> : null}
      </details>
    </form>
  )
}

const RATIOS: [string, number][] = [
  ['1:1', 1],
  ['4:3', 4 / 3],
  ['3:4', 3 / 4],
  ['16:9', 16 / 9],
  ['9:16', 9 / 16],
]

function More() {
  const known = server.value
  const own = model.value
  const size = own?.size
  const side = known?.limits.side
  const grid = (value: number) => String(Math.max(8, Math.round(value / 8) * 8))
  const area = size ? size[0] * size[1] : 0
  const width = Number(draft.value.width || size?.[0])
  const height = Number(draft.value.height || size?.[1])
  const large = area > 0 && width * height > 2 * area && !image.value
  return (
    <div class="more">
      <Prompt name="negative" label={t('negative')} hint={t('negativeHint')} rows={2} />
      {image.value ? null : (
        <fieldset class="sizes">
          <div class="pair">
            <NumberField name="width" label={t('width')} placeholder={size ? String(size[0]) : undefined} min={8} max={side} step={8} />
            <button
              type="button"
              class="plain"
              aria-label={t('swapSize')}
              title={t('swapSize')}
              onClick={() => change({ width: draft.value.height, height: draft.value.width })}
            >
              <Icon name="swap" />
            </button>
            <NumberField name="height" label={t('height')} placeholder={size ? String(size[1]) : undefined} min={8} max={side} step={8} />
          </div>
          {area ? (
            <div class="row wrap">
              {RATIOS.map(([label, ratio]) => (
                <button
                  key={label}
                  type="button"
                  class="chip"
                  onClick={() => change({ width: grid(Math.sqrt(area * ratio)), height: grid(Math.sqrt(area / ratio)) })}
                >
                  {label}
                </button>
              ))}
            </div>
          ) : null}
          {large ? (
            <p class="warning">
              {t('sizeLarge')}{' '}
              <button
                type="button"
                onClick={() => change({ width: grid(width / 2), height: grid(height / 2), hires: true, hiresScale: '2' })}
              >
                {t('useHires')}
              </button>
            </p>
          ) : null}
        </fieldset>
      )}
      <div class="grid">
        <NumberField name="steps" label={t('steps')} placeholder={own?.defaults?.steps?.toString()} min={1} max={known?.limits.steps} step={1} />
        <NumberField name="guidance" label={t('guidance')} placeholder={own?.defaults?.guidance_scale?.toString()} min={0} />
        <NumberField name="n" label={t('count')} min={1} max={known?.limits.n} step={1} />
      </div>
      <SeedField />
      <div class="grid">
        <Choice name="sampler" label={t('sampler')} usual={own?.sampler ? `${own.sampler}` : t('byModel')} options={known?.samplers ?? []} />
        <Choice name="schedule" label={t('schedule')} usual={t('byModel')} options={(known?.schedules ?? []).map((id) => ({ id, label: id }))} />
      </div>
      <ModelChoice />
      {image.value ? null : (
        <fieldset>
          <label class="check">
            <input type="checkbox" checked={draft.value.hires} onChange={(event) => change({ hires: event.currentTarget.checked })} />
            {t('hires')}
          </label>
          {draft.value.hires ? (
            <div class="grid">
              <Range name="hiresScale" label={t('hiresScale')} min={1.25} max={4} step={0.25} />
              <Range name="hiresStrength" label={t('hiresStrength')} min={0.05} max={1} step={0.05} />
            </div>
          ) : null}
        </fieldset>
      )}
      <Extras />
      <Further />
      <SweepFields />
      <Presets />
      <button
        type="button"
        onClick={() => {
          draft.value = EMPTY
          setImage(null)
          setMask(null)
          controls.value = []
          focusPrompt()
        }}
      >
        {t('reset')}
      </button>
    </div>
  )
}

/** Models with what they take; one that there is no room for can't be chosen. Others are loaded when a job needs them. */
function ModelChoice() {
  const known = server.value
  const all = known?.models ?? []
  const own = all.find((one) => one.name === known?.default_model)
  const told = (one: Model) =>
    !one.fits ? t('modelTooLarge') : one.state === 'loading' ? t('modelLoading') : one.state === 'loaded' ? t('modelLoaded') : one.seconds ? t('modelSeconds', { n: Math.ceil(one.seconds) }) : ''
  const label = (one: Model) => [one.name, size(one.bytes), told(one)].filter(Boolean).join(' · ')
  return (
    <Choice
      name="model"
      label={t('model')}
      usual={own ? label(own) : ''}
      options={all.filter((one) => one !== own).map((one) => ({ id: one.name, label: label(one), disabled: !one.fits }))}
    />
  )
}

function SeedField() {
  const last = newestFirst.value.find((job) => job.images.length)?.images[0]?.seed
  return (
    <div class="field">
      <label for="field-seed">{t('seed')}</label>
      <span class="row">
        <input
          id="field-seed"
          inputMode="numeric"
          autocomplete="off"
          placeholder={t('seedHint')}
          value={draft.value.seed}
          onInput={(event) => change({ seed: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.key === 'Enter' && !event.isComposing) event.currentTarget.form?.requestSubmit()
          }}
          {...described('seed')}
        />
        {draft.value.seed ? (
          <button type="button" aria-label={t('newSeed')} title={t('newSeed')} onClick={() => change({ seed: '' })}>
            <Icon name="dice" />
          </button>
        ) : (
          <button type="button" aria-label={t('keepSeed')} title={t('keepSeed')} disabled={!last} onClick={() => change({ seed: last! })}>
            <Icon name="lock" />
          </button>
        )}
      </span>
      <Fault name="seed" />
    </div>
  )
}
