import { signal } from '@preact/signals'
import { api, fileOf, Problem, type PictureInfo, type Recipe } from '../api'
import { t } from '../i18n'
import { change, draft, faults, more } from './draft'
import { asked, FIELDS, fromRecipe } from './recipe'
import { controls, dataUrl, image, inputOf, mask, setImage, setMask } from './inputs'
import { put, watched } from './queue'
import { readServer } from './server'
import { closePicture, said, show, tell, tellProblem } from './ui'

/** What somebody does that concerns more than one part of the page. */

export const sending = signal(0)

async function bodyOf(): Promise<object | FormData> {
  const body = asked(draft.value, image.value !== null, mask.value !== null)
  if (controls.value.length) {
    body.controls = await Promise.all(
      controls.value.map(async ({ net, hint, scale, picture }) => ({
        net,
        scale: Number(scale),
        ...(hint ? { hint } : {}),
        image: await dataUrl(picture.blob),
      })),
    )
  }
  if (!image.value) return body
  const form = new FormData()
  form.set('request', JSON.stringify(body))
  form.set('image', image.value.blob, 'image')
  if (mask.value) form.set('mask', mask.value.blob, 'mask')
  return form
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
  } catch (error) {
    refused(error)
  } finally {
    sending.value--
  }
}

/** Say what is wrong where it is wrong: the server's sentences begin with the field that they are about. */
function refused(error: unknown): void {
  if (!(error instanceof Problem)) return tellProblem(error)
  if (error.status === 401) return void readServer()
  const name = error.field ?? error.message.match(/^[a-z_]+/)?.[0] ?? ''
  const field = FIELDS[name] ?? (name === 'image' || name === 'mask' || name === 'controls' ? name : null)
  if (error.status !== 422 || field === null) return tellProblem(error)
  faults.value = { [field]: error.message }
  said.value = error.message
  if (field !== 'prompt') more.value = true
  requestAnimationFrame(() => document.getElementById(`field-${field}`)?.focus())
}

/** What of a recipe the page has no field for, or would need pictures for. */
const UNFOLLOWED = ['image', 'mask', 'depth', 'controls', 'loras', 'outpaint', 'variation_seed', 'clip_skip', 'pag_scale', 'threshold']

/** Take a recipe's settings, or only its prompt or seed, into the draft. */
export function take(recipe: Recipe, seed: string | null, only: 'all' | 'prompt' | 'seed'): void {
  const own = seed === null ? recipe : { ...recipe, seed }
  draft.value = fromRecipe(own, draft.value, only)
  faults.value = {}
  if (only !== 'prompt') more.value = true
  if (only === 'all') {
    setImage(null)
    setMask(null)
    controls.value = []
  }
  closePicture()
  show('draw')
  focusPrompt()
  const left = UNFOLLOWED.filter((name) => (Array.isArray(recipe[name]) ? recipe[name].length : recipe[name]))
  if (only === 'all' && left.length) tell(t('ignoredParts', { what: left.join(', ') }), { seconds: 10 })
}

export function focusPrompt(): void {
  requestAnimationFrame(() => document.getElementById('field-prompt')?.focus())
}

async function fileBlob(id: string): Promise<Blob> {
  const answer = await fetch(fileOf(id))
  if (!answer.ok) throw new Error(t('gone'))
  return answer.blob()
}

/** Start from a picture of the gallery. */
export async function startFrom(picture: PictureInfo): Promise<boolean> {
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
    const job = await api.rerun(picture.job, { seed: null })
    put(job)
    watched.value = job.id
    closePicture()
    show('draw')
    said.value = t('saidQueued')
  } catch (error) {
    tellProblem(error)
  }
}

/** Draw a picture twice as large, by what the model can do best. */
export async function enlarge(picture: PictureInfo): Promise<void> {
  const form = new FormData()
  const prompt = typeof picture.recipe.prompt === 'string' ? picture.recipe.prompt : ''
  form.set('request', JSON.stringify({ prompt, upscale: 2, ...(draft.value.model ? { model: draft.value.model } : {}) }))
  try {
    form.set('image', await fileBlob(picture.id), 'image')
    const job = await api.draw(form)
    put(job)
    watched.value = job.id
    closePicture()
    show('draw')
    said.value = t('saidQueued')
  } catch (error) {
    tellProblem(error)
  }
}

/** Read the recipe in a file that somebody dropped. */
export async function readRecipe(file: Blob): Promise<void> {
  try {
    const found = await api.import(file)
    if (!Object.keys(found.recipe).length) return tell(t('noRecipe'))
    take(found.recipe, null, 'all')
    const ignored = Array.isArray(found.ignored) ? found.ignored : Object.keys((found.ignored as object) ?? {})
    const left = [...ignored.map(String), ...found.warnings]
    tell(t('recipeRead', { source: found.source }) + (left.length ? ` ${t('ignoredParts', { what: left.join(', ') })}` : ''), { seconds: 10 })
  } catch (error) {
    tellProblem(error)
  }
}

/** Put a picture's recipe, as A1111's text, on the clipboard. */
export async function copy(info: PictureInfo): Promise<void> {
  try {
    await navigator.clipboard.writeText(info.infotext)
    tell(t('copied'))
  } catch (error) {
    tellProblem(error)
  }
}
