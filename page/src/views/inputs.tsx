import { useSignal } from '@preact/signals'
import { lazy } from './lazy'
import { api } from '../api'
import { t } from '../i18n'
import { change, draft } from '../state/draft'
import { controls, image, inputOf, mask, setControl, setImage, setMask, type Control } from '../state/inputs'
import { server } from '../state/server'
import { tellProblem } from '../state/ui'
import { sent } from '../state/uploads'
import { Fault, Range } from './fields'
import { FilePick } from './filepick'
import { masking } from './masking'

const MaskEditor = lazy(() => import('../mask/editor').then((found) => found.MaskEditor))
const Outpaint = lazy(() => import('./outpaint').then((found) => found.Outpaint))

export async function chooseImage(file: Blob): Promise<void> {
  try {
    setImage(await inputOf(file))
  } catch (error) {
    tellProblem(error)
  }
}

export async function addControlNet(file: Blob): Promise<void> {
  try {
    const [picture, { controlnets }] = await Promise.all([inputOf(file), api.adapters()])
    const net = controlnets[0]?.name ?? ''
    const hints = server.value?.hints ?? []
    controls.value = [...controls.value, { net, hint: hints.find((one) => net.includes(one)) ?? hints[0] ?? '', scale: '1', picture }]
  } catch (error) {
    tellProblem(error)
  }
}

/** The starting picture, its mask, and what the ControlNets see. */
export function Inputs() {
  const own = image.value
  const { left, top, right, bottom } = draft.value
  const extending = useSignal(Boolean(left || top || right || bottom))
  return (
    <div class="inputs">
      {own ? (
        <fieldset>
          <legend>{t('picture')}</legend>
          <div class="row top">
            <div class="thumb">
              <img src={own.url} alt={t('picture')} />
              {mask.value ? <img class="maskshown" src={mask.value.url} alt={t('mask')} /> : null}
            </div>
            <div class="stack">
              <button type="button" onClick={() => (masking.value = true)}>
                {mask.value ? t('changeMask') : t('editMask')}
              </button>
              {mask.value ? (
                <button type="button" onClick={() => setMask(null)}>
                  {t('removeMask')}
                </button>
              ) : null}
              <button
                type="button"
                onClick={() => {
                  setImage(null)
                  setMask(null)
                }}
              >
                {t('removePicture')}
              </button>
            </div>
          </div>
          <Range name="strength" label={t('strength')} hint={t('strengthHint')} min={0.05} max={1} step={0.05} />
          {mask.value ? (
            <label class="check">
              <input
                type="checkbox"
                checked={draft.value.onlyMasked}
                onChange={(event) => change({ onlyMasked: event.currentTarget.checked })}
              />
              {t('onlyMasked')}
            </label>
          ) : null}
          <details open={extending.value} onToggle={(event) => (extending.value = event.currentTarget.open)}>
            <summary>{t('extend')}</summary>
            {extending.value ? <Outpaint picture={own} /> : null}
          </details>
          <Fault name="image" />
          <Fault name="mask" />
        </fieldset>
      ) : (
        <FilePick label={t('chooseFile')} take={(file) => void chooseImage(file)} />
      )}
      {controls.value.map((control, i) => (
        <ControlBox key={control.picture.url} control={control} at={i} />
      ))}
      <Fault name="controls" />
      {masking.value && own ? (
          <MaskEditor picture={own} mask={mask.value} onDone={setMask} onClose={() => (masking.value = false)} />
      ) : null}
    </div>
  )
}

function ControlBox({ control, at }: { control: Control; at: number }) {
  const shown = useSignal<string | null>(null)
  const nets = useSignal<string[]>([control.net])
  const showHint = async () => {
    try {
      const blob = await api.hint(control.hint, await sent(control.picture.blob))
      if (shown.value) URL.revokeObjectURL(shown.value)
      shown.value = URL.createObjectURL(blob)
    } catch (error) {
      tellProblem(error)
    }
  }
  return (
    <fieldset>
      <legend>{t('control')}</legend>
      <div class="row top">
        <div class="thumb">
          <img src={shown.value ?? control.picture.url} alt={t('control')} />
        </div>
        <div class="stack">
          <label>
            {t('control')}
            <select
              value={control.net}
              onFocus={() => void api.adapters().then((found) => (nets.value = found.controlnets.map((one) => one.name)), () => undefined)}
              onChange={(event) => setControl(at, { net: event.currentTarget.value })}
            >
              {nets.value.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          <label>
            {t('hint')}
            <select
              value={control.hint}
              onChange={(event) => {
                shown.value = null
                setControl(at, { hint: event.currentTarget.value })
              }}
            >
              <option value="">{t('hintNone')}</option>
              {(server.value?.hints ?? []).map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          <label>
            {t('controlScale')}
            <input
              type="number"
              step="0.05"
              value={control.scale}
              onInput={(event) => setControl(at, { scale: event.currentTarget.value })}
            />
          </label>
          {control.hint ? (
            <button type="button" onClick={() => void showHint()}>
              {t('showHint')}
            </button>
          ) : null}
          <button type="button" onClick={() => setControl(at, null)}>
            {t('removePicture')}
          </button>
        </div>
      </div>
    </fieldset>
  )
}
