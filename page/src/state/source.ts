import { api, type Adapters, type Job, type Recipe } from '../api'
import { t } from '../i18n'
import { inputOf, type Control, type Input } from './inputs'
import { tagged } from './recipe'
import { server } from './server'
import { remember } from './uploads'

/** Where a recipe comes from: a picture of the gallery, a job of the queue, or a file that somebody dropped. */
export interface Source {
  recipe: Recipe
  /** The job that asked for it, with all that it is made from, where the server still knows it. */
  job: Job | null
  /** What its reader says isn't followed. */
  left: string[]
}

export async function ofPicture(id: string): Promise<Source> {
  const info = await api.picture(id)
  const job = await api.job(info.job).catch(() => null)
  return { recipe: { ...info.recipe, seed: info.seed }, job, left: [] }
}

export function ofJob(job: Job): Source {
  const seed = job.images[0]?.seed ?? job.request.seed
  const whole = typeof seed === 'string' || Number.isSafeInteger(seed) // a larger one was cut when it was read
  return { recipe: { ...job.request, seed: whole ? seed : null }, job, left: whole ? [] : [t('seed')] }
}

export async function ofFile(file: Blob): Promise<Source & { from: string }> {
  const found = await api.import(file)
  if (!Object.keys(found.recipe).length) throw new Error(t('noRecipe'))
  const ignored = Array.isArray(found.ignored) ? found.ignored : Object.keys((found.ignored as object) ?? {})
  return { recipe: found.recipe, job: null, left: [...ignored.map(String), ...found.warnings], from: found.source }
}

/** What of a source goes beyond fields: pictures, ControlNets, LoRAs, a model; and names of what can't be had. */
export interface Carried {
  image: Input | null
  mask: Input | null
  controls: Control[]
  /** Settings for the draft's `further`. */
  further: Recipe
  model: string | null
  missing: string[]
}

export async function carried({ recipe, job }: Source): Promise<Carried> {
  const adapters = await api.adapters().catch((): Adapters => ({ loras: [], embeddings: [], controlnets: [], vaes: [], reading: 0 }))
  const found: Carried = { image: null, mask: null, controls: [], further: {}, model: modelOf(recipe, job), missing: [] }
  if (found.model === null) found.missing.push(`${t('model')} ${String(recipe.model)}`)
  attached({ recipe, job, left: [] }, adapters, found)
  if (job?.upscale) found.further.upscale = job.upscale.scale ?? 2
  const picture = async (role: string, name: string): Promise<Input | null> => {
    const sha = job?.inputs[role]
    const blob = sha ? await api.input(sha).catch(() => null) : null
    if (sha && blob) remember(blob, sha)
    const input = blob && (await inputOf(blob).catch(() => null))
    if (!input && (sha || (!job && recipe[role]))) found.missing.push(name)
    return input
  }
  found.image = await picture('image', t('picture'))
  const mask = await picture('mask', t('mask'))
  if (found.image) found.mask = mask
  await picture('depth', t('depth'))
  if (job?.inputs.depth && !found.missing.includes(t('depth'))) found.missing.push(t('depth')) // the page has no place for one
  for (const [i, { net, hint, scale, ...more }] of (job?.controls ?? []).entries()) {
    const shown = await picture(`control.${i}`, `${t('control')} ${net}`)
    if (shown) found.controls.push({ net, hint: hint ?? '', scale: String(scale), more, picture: shown })
  }
  if (!job) for (const { name } of objects(recipe.controls)) found.missing.push(`${t('control')} ${name}`)
  return found
}

const objects = (given: unknown) => (Array.isArray(given) ? (given as { name?: string; scale?: number; text_scale?: number }[]) : [])

/** LoRAs that no tag of the prompt asks for, and those and learned words that aren't here. */
function attached({ recipe, job }: Source, adapters: Adapters, found: Carried): void {
  const here = new Set(adapters.loras.map(({ name }) => name))
  const tags = tagged(recipe.prompt)
  const loras = job
    ? job.loras
    : objects(recipe.loras)
        .filter(({ name }) => name && !tags.includes(name))
        .map(({ name = '', scale = 1, text_scale = null }) => ({ name, scale, text_scale }))
  const kept = loras.filter(({ name }) => here.has(name))
  if (kept.length) found.further.loras = kept
  for (const name of new Set([...tags, ...loras.map((lora) => lora.name)])) if (!here.has(name)) found.missing.push(`LoRA ${name}`)
  const words = new Set(adapters.embeddings.map(({ name }) => name))
  for (const used of Array.isArray(recipe.embeddings) ? recipe.embeddings : []) {
    const name = String(used).split(':')[0]!
    if (!words.has(name)) found.missing.push(name)
  }
}

/** The model's name here: "" the default one, null where there is none such. */
function modelOf(recipe: Recipe, job: Job | null): string | null {
  const known = server.value
  const wanted = job?.model ?? recipe.model
  if (!known || typeof wanted !== 'string' || !wanted) return ''
  const own = known.models.find(({ name }) => name === wanted) ?? known.models.find(({ hash }) => hash && hash === recipe.model_hash)
  if (own) return own.name === known.default_model ? '' : own.name
  return job ? wanted : null // a job's may be MODEL + VAE
}
