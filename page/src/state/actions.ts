import { signal } from '@preact/signals'
import { api, Problem, type Job, type PictureInfo, type Recipe } from '../api'
import { t } from '../i18n'
import { change, draft, faults, more } from './draft'
import { fileBlob } from './files'
import { asked, EMPTY, FIELDS, fromRecipe, type Only } from './recipe'
import { controls, image, inputOf, mask, setImage, setMask } from './inputs'
import { put, watched } from './queue'
import { readServer, server } from './server'
import { carried, ofPicture, type Source } from './source'
import { axesAsked, sweep, sweeping } from './sweeps'
import { sent } from './uploads'
import { closePicture, said, show, tell, tellProblem } from './ui'

/** What somebody does that concerns more than one part of the page. */

export const sending = signal(0)

/** The draft as a job, once the server has its pictures. */
async function bodyOf(): Promise<Record<string, unknown>> {
  const [own, masked, followed] = [image.value, mask.value, controls.value]
  const body = asked(draft.value, own !== null, masked !== null)
  const [start, painted, ...shown] = await Promise.all([own, masked, ...followed.map((one) => one.picture)].map((one) => one && sent(one.blob)))
  if (start) body.image = start
  if (start && painted) body.mask = painted
  if (followed.length) {
    body.controls = followed.map(({ net, hint, scale, more }, i) => ({ ...more, net, scale: Number(scale), ...(hint ? { hint } : {}), image: shown[i] }))
  }
  return body
}

/** Ask for the draft. It stays as it is, so that the next one can be asked for at once. */
export async function generate(): Promise<void> {
  sending.value++
  try {
    faults.value = {}
    const job = await api.draw(await bodyOf())
    put(job)
    watched.value = job.id
    said.value = t('saidQueued')
    if (matchMedia('(pointer: coarse)').matches) document.querySelector('.stage')?.scrollIntoView({ block: 'nearest' }) // far below, on a phone
  } catch (error) {
    refused(error)
  } finally {
    sending.value--
  }
}

/** Ask for a grid of the draft, and look at it. */
export async function drawSweep(): Promise<void> {
  sending.value++
  try {
    faults.value = {}
    const { n: _, ...body } = await bodyOf()
    sweep.value = await api.sweep({ ...body, axes: axesAsked() })
    said.value = t('saidQueued')
    location.hash = `sweeps/${sweep.value.id}`
  } catch (error) {
    refused(error)
  } finally {
    sending.value--
  }
}

/** A recipe in the fields, with those of a grid open. */
export async function vary(load: () => Promise<Source>): Promise<void> {
  await take(load, 'all')
  more.value = true
  sweeping.value = true
  setTimeout(() => document.getElementById('field-axes')?.focus(), 50)
}

/** Say what is wrong where it is wrong: the server's sentences begin with the field that they are about. */
function refused(error: unknown): void {
  if (!(error instanceof Problem)) return tellProblem(error)
  if (error.status === 401) return void readServer()
  const name = error.field ?? (/^(axis|the (cell|axes|sheet))\b/.test(error.message) ? 'axes' : (error.message.match(/^[a-z_]+/)?.[0] ?? ''))
  const field = FIELDS[name] ?? (name === 'image' || name === 'mask' || name === 'controls' || name === 'axes' ? name : null)
  if (error.status !== 422 || field === null) return tellProblem(error)
  faults.value = { [field]: error.message }
  said.value = error.message
  if (field !== 'prompt') more.value = true
  if (name === 'axes') sweeping.value = true
  requestAnimationFrame(() => document.getElementById(`field-${field}`)?.focus())
}

/** Take a recipe, or only its prompt or seed, into the draft; what can't be had any more is said. */
export async function take(load: () => Promise<Source>, only: Only): Promise<void> {
  try {
    const source = await load()
    const { recipe, left } = source
    const usual = server.value?.settings
    if (only === 'all') {
      const found = await carried(source)
      const next = fromRecipe(recipe, draft.value, 'all', usual)
      setImage(found.image)
      setMask(found.mask)
      controls.value = found.controls
      draft.value = { ...next, model: found.model ?? next.model, further: { ...next.further, ...found.further } }
      const missing = [...found.missing, ...left]
      if (missing.length) tell(t('notCarried', { what: missing.join(', ') }), { seconds: 12 })
      else tell(t('carried'))
    } else {
      draft.value = fromRecipe(recipe, draft.value, only)
      tell(t('carried'))
    }
    faults.value = {}
    if (only !== 'prompt') more.value = true
    closePicture()
    show('draw')
    focusPrompt()
  } catch (error) {
    tellProblem(error)
  }
}

/** A recipe once more with one setting changed (null: a new seed). Raises Problem. */
export async function againWith(source: Source, name: string, value: unknown): Promise<void> {
  const { recipe, job } = source
  const varied = recipe.variation_strength ? { variation_seed: recipe.variation_seed } : {}
  const changes = { n: 1, seed: recipe.seed, ...varied, [name]: value }
  const body = () => ({ ...asked(fromRecipe(recipe, EMPTY, 'all', server.value?.settings), false), ...changes })
  began(job ? await api.rerun(job.id, changes) : await api.draw(body()))
}

/** Show a job that was just asked for. */
function began(job: Job): void {
  put(job)
  watched.value = job.id
  closePicture()
  show('draw')
  said.value = t('saidQueued')
}

export function focusPrompt(): void {
  requestAnimationFrame(() => document.getElementById('field-prompt')?.focus())
}

/** Start from a picture of the gallery. */
export async function startFrom(picture: { id: string; prompt: string }): Promise<boolean> {
  try {
    setImage(await inputOf(await fileBlob(picture.id)))
  } catch (error) {
    tellProblem(error)
    return false
  }
  if (!draft.value.prompt) change({ prompt: picture.prompt })
  closePicture()
  show('draw')
  return true
}

/** The job of a picture once more, with all that it was made from and another seed. */
export async function again(picture: PictureInfo): Promise<void> {
  try {
    began(await api.rerun(picture.job, { seed: null }))
  } catch (error) {
    tellProblem(error)
  }
}

/** Draw a picture twice as large, by what the model can do best; the picture stays as it is. */
export const enlarge = (picture: PictureInfo) => drawnFrom(picture, ({ prompt }) => ({ prompt: prompt ?? '', upscale: 2 }))

export const SECOND_PASS = 0.35 // of the picture is drawn anew

/** A picture's recipe once more over the picture itself, twice as large: with new detail. */
export const secondPass = (picture: PictureInfo) =>
  drawnFrom(picture, (recipe) => {
    const again = fromRecipe(recipe, { ...EMPTY, model: '' }, 'all', server.value?.settings)
    const fields = asked({ ...again, strength: String(SECOND_PASS), left: '', top: '', right: '', bottom: '' }, true)
    return { ...fields, width: 2 * picture.width, height: 2 * picture.height }
  })

/** A job that starts from a picture, with its model and LoRAs. */
async function drawnFrom(picture: PictureInfo, fields: (recipe: Recipe) => object): Promise<void> {
  try {
    const { recipe, job } = await ofPicture(picture.id)
    const own = job ? { model: job.model, loras: job.loras } : {}
    began(await api.draw({ ...fields(recipe), ...own, image: await sent(await fileBlob(picture.id)) }))
  } catch (error) {
    tellProblem(error)
  }
}

/** A picture as the mask of the starting picture, at that one's size. */
export async function takeAsMask(file: Blob): Promise<void> {
  const own = image.value
  if (!own) return
  try {
    const { sized } = await import('../mask/picture')
    setMask(await inputOf(await sized(file, own.width, own.height)))
  } catch (error) {
    tellProblem(error)
  }
}
