import { inputAt, type Job } from '../api'
import { placed, type Part } from '../zoom'

/** What a picture was started from, and where it lies in it: an extended picture is larger than its original. */
export interface Original {
  url: string
  place: Part
}

export function originalOf(job: Job, width: number, height: number): Original | null {
  const sha = job.inputs.image
  return sha ? { url: inputAt(sha), place: placed(width, height, job.request.outpaint) } : null
}
